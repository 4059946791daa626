"""What is compiled ahead is all that a recording needs."""

import torch
from numba.core.dispatcher import Dispatcher

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.recording import kernels
from outlier_moe.recording.sketch import sketch_site, sketch_union
from outlier_moe.study.compile_kernels import compile_sketch


def _signatures() -> dict[str, int]:
    found = {name: value for name, value in vars(kernels).items() if isinstance(value, Dispatcher)}
    return {name: len(kernel.signatures) for name, kernel in found.items()}


def test_a_sketch_after_it_compiles_nothing() -> None:
    """Other sizes, more sequences, with a union and without, take the loops that are there."""
    compile_sketch(torch.float32)
    before = _signatures()
    assert before
    x = torch.randn(2, 300, 130)
    union = torch.zeros(x.shape, dtype=torch.uint8)
    sketch_site(x, ladder=Ladder(), union=union)
    sketch_site(x, ladder=Ladder(), union=union, scale="token_rms")
    sketch_union(union, Ladder())
    assert _signatures() == before
