"""Compile the loops of the recording and of the resampling ahead of their use.

Run: `python -m outlier_moe.study.compile_kernels`; `make demo` does so once.

Numba keeps what it compiles beside the modules, for this kind of processor, until a module changes. Without this the
first recording compiles for half a minute, in which no token goes through the model.
"""

from __future__ import annotations

import numpy as np
import torch

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.presets import Preset
from outlier_moe.judging.sequence_tables import SequenceTables
from outlier_moe.recording.sketch import sketch_site, sketch_union
from outlier_moe.statistics.resampled_figures import preset_figures

# More magnitudes than a median is taken of directly, so that its bracket is compiled as well.
SHAPE = (1, 256, 128)
SYSTEMATIC = Preset("dettmers2022", "systematic", "linear_inputs", 6.0)


def compile_sketch(dtype: torch.dtype) -> None:
    """Sketch a few activations of a format as the recording does, with a union and divided by each token's RMS."""
    ladder = Ladder()
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    union = torch.zeros(SHAPE, dtype=torch.uint8)
    sketch_site(x, ladder=ladder, union=union)
    sketch_site(x, ladder=ladder, union=union, scale="token_rms")
    sketch_union(union, ladder)


def compile_resampling() -> None:
    """Resample two made-up sequences."""
    counts = np.full((2, 8), 9, np.int64)
    tables = SequenceTables(
        preset=SYSTEMATIC,
        first_token="included",
        sites=np.full((2, 1, 1, 8), 1, np.uint64),
        n_values=counts,
        n_positions=counts,
        peak=np.full((2, 8), 8.0, np.float32),
        d_model=8,
        layers=1,
        positions=16,
    )
    preset_figures(tables, np.ones((1, 2), np.int64))


def main() -> None:
    """Compile for checkpoints in 32 and in 16 bits."""
    for dtype in (torch.float32, torch.bfloat16):
        compile_sketch(dtype)
    compile_resampling()


if __name__ == "__main__":
    main()
