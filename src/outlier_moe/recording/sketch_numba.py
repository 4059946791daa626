"""The sketch on the CPU: one sequence's features are divided among as many threads as torch would use."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Shaped, UInt8, UInt16, UInt32
from torch import Tensor

from outlier_moe.ladder import Ladder
from outlier_moe.recording import kernels
from outlier_moe.recording.tally import SiteSketch, Tally, UnionSketch, site_sketch, union_sketch

if TYPE_CHECKING:
    from outlier_moe.recording.sketch import Scale

FORMATS = {torch.float32: kernels.FLOAT32, torch.bfloat16: kernels.BFLOAT16, torch.float16: kernels.FLOAT16}

FEWEST_FEATURES = 64
# Runs of 8 magnitudes that the bracket of the median is judged from. Its half width is three standard errors of the
# sample's median rank: it misses one time in hundreds, and then the median costs three more passes.
SAMPLE = (1024, 16)
STANDARD_ERRORS = 3


class _Sequence(NamedTuple):
    """One sequence's activations as the compiled loops take them."""

    bits: Shaped[np.ndarray, "position feature"]
    """Their bit patterns."""
    kind: int
    """Their format."""
    divisors: Float32[np.ndarray, " position"]
    """What each token's values are divided by."""


class _Part(NamedTuple):
    """What one range of a sequence's features came to."""

    n_positions: UInt16[np.ndarray, " count"]
    """The counts at the edges, feature after feature."""
    inside: UInt32[np.ndarray, " value"]
    """The magnitudes inside the bracket."""
    n_below: int
    """How many lie below it; -1 if not all that are inside were kept."""


def _sequence(x: Float[Tensor, "position feature"], scale: Scale) -> _Sequence:
    integer, unsigned = (torch.int32, np.uint32) if x.dtype == torch.float32 else (torch.int16, np.uint16)
    bits = x.contiguous().view(integer).numpy().view(unsigned)
    divisors = np.ones(len(bits), np.float32)
    if scale == "token_rms":
        kernels.token_rms(bits, FORMATS[x.dtype], 0, len(bits), divisors)
    return _Sequence(bits, FORMATS[x.dtype], divisors)


def _bracket(sequence: _Sequence) -> UInt32[np.ndarray, " low_and_width=2"]:
    """Bit patterns that most likely hold the median of the magnitudes: the lowest, and how many from there on."""
    n_runs, length = SAMPLE
    length = min(length, sequence.bits.shape[1])
    sampled = np.empty((n_runs, length), np.uint32)
    kernels.sample(*sequence, sampled)
    # Bit patterns of magnitudes are ordered as the magnitudes are; what is not finite comes last.
    magnitudes = np.sort(sampled, axis=None)
    n = int(np.searchsorted(magnitudes, kernels.INFINITY))
    if n == 0:
        return np.array([1, 0], np.uint32)
    error = math.ceil(STANDARD_ERRORS * 0.5 * math.sqrt(n))
    low = max(1, int(magnitudes[max(0, (n - 1) // 2 - error)]))
    high = int(magnitudes[min(n - 1, (n - 1) // 2 + error)])
    return np.array([low, max(0, high - low + 1)], np.uint32)


def _median(sequence: _Sequence, parts: list[_Part], n_finite: int) -> np.uint32:
    """The lower median of the magnitudes, as bits: from inside the bracket or, where that missed, from all."""
    if n_finite == 0:
        return np.uint32(0)
    rank = (n_finite - 1) // 2
    inside = np.concatenate([part.inside for part in parts])
    rank_inside = rank - sum(part.n_below for part in parts)
    if 0 <= rank_inside < len(inside) and all(part.n_below >= 0 for part in parts):
        return np.partition(inside, rank_inside)[rank_inside]
    return np.uint32(kernels.median_by_digits(*sequence, rank))


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="sketch")


def _share(work: Callable[[int, int], list], n_features: int) -> list[list]:
    """What `work` returns for each range of features, the ranges done at once on torch's number of threads."""
    n_ranges = max(1, min(torch.get_num_threads(), n_features // FEWEST_FEATURES))
    bounds = [n_features * i // n_ranges for i in range(n_ranges + 1)]
    others = [_pool(n_ranges - 1).submit(work, *bounds[i : i + 2]) for i in range(1, n_ranges)]
    return [work(*bounds[:2]), *(other.result() for other in others)]


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site."""
    n_sequences, n_rows, n_features = x.shape
    sequences = [_sequence(each, scale) for each in x]
    brackets = [_bracket(sequence) for sequence in sequences]
    unions = np.zeros((n_sequences, 0, n_features), np.uint8) if union is None else union.numpy()
    peaks = np.empty((n_sequences, 4, n_features), np.uint32)
    sums = np.empty((n_sequences, 4, n_features))
    n_nonfinite = np.empty((n_sequences, n_features), np.int64)

    def work(begin: int, end: int) -> list[_Part]:
        return [
            _Part(
                *kernels.tally_features(
                    *sequence, unions[s], ladder.floor_rung, brackets[s], begin, end, peaks[s], sums[s], n_nonfinite[s]
                )
            )
            for s, sequence in enumerate(sequences)
        ]

    parts = [part for each in zip(*_share(work, n_features), strict=True) for part in each]
    n_parts = len(parts) // n_sequences
    medians = [
        _median(sequence, parts[s * n_parts : (s + 1) * n_parts], n_rows * n_features - int(n_nonfinite[s].sum()))
        for s, sequence in enumerate(sequences)
    ]
    tally = Tally(
        first=peaks[:, 0].view(np.float32),
        later=peaks[:, 1].view(np.float32),
        later_position=peaks[:, 2].astype(np.uint16),
        peak_value=peaks[:, 3].view(np.float32),
        n_positions=np.concatenate([part.n_positions for part in parts]),
        sums=sums,
        n_nonfinite=n_nonfinite,
        median=np.array(medians, np.uint32).view(np.float32),
    )
    return site_sketch(
        tally,
        ladder=ladder,
        n_positions=n_rows,
        central_sums=lambda s, centre: kernels.central_sums(*sequences[s], centre).sum(axis=1),
    )


def sketch_union(union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
    """The counts over a union."""
    steps = np.ascontiguousarray(union.numpy())
    later = np.zeros((len(steps), steps.shape[2]), np.uint8)
    counts = [kernels.tally_union(sequence, later[s]) for s, sequence in enumerate(steps)]
    return union_sketch(steps[:, 0], later, np.concatenate(counts))
