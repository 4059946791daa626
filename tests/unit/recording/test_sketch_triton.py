"""The fused kernels, in Triton's interpreter, against the sketch on the CPU; what they cost; and what cards get."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.recording import sketch_numba, sketch_torch
from outlier_moe.recording.sketch import Card
from outlier_moe.recording.tally import Scale
from tests.unit.recording.test_sketch import (
    DTYPES,
    LADDER,
    SCALES,
    activations,
    assert_plain,
    assert_same,
    dense,
    tensor_of,
)

pytest.importorskip("triton", reason="Triton has no build for this platform.")

from outlier_moe.recording import sketch_triton, triton_kernels

# The interpreter computes with numpy, which remarks on infinities.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

KERNELS = [name for name, value in vars(triton_kernels).items() if hasattr(value, "arg_names") and name[0] != "_"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that a few positions and features make several programs, and several rounds of each."""
    monkeypatch.setattr(sketch_triton, "TILE", {"PART": 16, "ROWS": 8, "LANES": 16})
    monkeypatch.setattr(sketch_triton, "WIDE", 16)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=10)
@given(x=activations)
def test_any_tensor_equals_the_definitions(x: np.ndarray, dtype: torch.dtype, scale: Scale) -> None:
    assert_plain(tensor_of(x, dtype), LADDER, scale, sketch_triton)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 17, 33), (3, 15, 1), (1, 1, 40)])
def test_it_says_the_same_as_the_cpu_at_the_edges_of_tiles(
    shape: tuple[int, ...], dtype: torch.dtype, scale: Scale
) -> None:
    x = dense(*shape, dtype=dtype)
    unions = [torch.full(shape, 3, dtype=torch.uint8) for _ in range(2)]
    one = sketch_numba.sketch_site(x, ladder=LADDER, union=unions[0], scale=scale)
    other = sketch_triton.sketch_site(x, ladder=LADDER, union=unions[1], scale=scale)
    assert_same(one, other, relative=1e-12)
    assert torch.equal(*unions)
    for a, b in zip(sketch_numba.sketch_union(unions[0]), sketch_triton.sketch_union(unions[1]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("floor", [2.0**-126, 2.0**90])
def test_any_floor_equals_the_definitions(floor: float) -> None:
    edges = Ladder(floor).edges[[0, 1, 7, 200, 254]]
    x = np.random.default_rng(0).permutation(np.tile(np.concatenate([edges, -edges]), 6)).reshape(1, 12, 5)
    assert_plain(torch.from_numpy(x), Ladder(floor), "none", sketch_triton)


@pytest.mark.parametrize("value", [0.0, 3.1, float("nan"), 1000.0])
def test_values_that_hardly_differ(value: float) -> None:
    x = value + torch.randn((2, 33, 17), generator=torch.Generator().manual_seed(0)) / 1000
    assert_plain(x, LADDER, "none", sketch_triton)
    assert_plain(torch.full((1, 1, 1), value), LADDER, "token_rms", sketch_triton)


def test_strides_do_not_matter() -> None:
    x, union = dense(2, 20, 24), torch.zeros((2, 20, 40), dtype=torch.uint8)[:, :, 7:31]
    kept = torch.zeros(x.shape, dtype=torch.uint8)
    one = sketch_triton.sketch_site(x, ladder=LADDER, union=kept, scale="none")
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert_same(one, sketch_triton.sketch_site(strided, ladder=LADDER, union=union, scale="none"))
    assert torch.equal(kept, union)


FENCE = 256


class Launches:
    """A kernel that keeps its launches: its name, and its arrays by name."""

    def __init__(self, kernel: Any, launches: list[tuple[str, dict[str, Tensor]]], *, runs: bool = True) -> None:
        self.kernel = kernel
        self.launches = launches
        self.runs = runs

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            named = dict(zip(self.kernel.arg_names, arguments, strict=False)) | options
            arrays = {name: value for name, value in named.items() if isinstance(value, Tensor)}
            self.launches.append((self.kernel.__name__, arrays))
            if self.runs:
                self.kernel[grid](*arguments, **options)

        return launch


class Operations(TorchDispatchMode):
    """Counts torch's operations that a card would be given, and refuses those that would wait for it."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_to_copy", "item", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(self.WAITING), f"{name} waits for the card"
        if not (func.is_view or name.startswith(("empty", "new_empty"))):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


# What a kernel reads or writes whole; of the rest a few elements a feature, or nothing as a rule. `tally` reads and
# writes the union, and writes of the histogram what reaches the floor, once.
WHOLE = {
    "token_divisors": ("x", "divisors"),
    "tally": ("x", "divisors", "union", "union", "histogram", "first", "later", "sums", "n_nonfinite"),
    "count_digit": ("x", "divisors"),
    "join_parts": ("later", "sums", "n_nonfinite", "peaks", "later_position", "top_step", "joined_sums"),
    "finish_sequences": ("top_step", "joined_sums", "joined_nonfinite", "ends"),
    "list_counts": ("histogram", "top_step", "ends"),
    "sum_about_mean": (),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_site_costs_few_launches_and_bytes_and_never_waits(
    dtype: torch.dtype, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    launches: list[tuple[str, dict[str, Tensor]]] = []
    for name in KERNELS:
        monkeypatch.setattr(triton_kernels, name, Launches(getattr(triton_kernels, name), launches, runs=False))
    shape = (8, 2048, 4096)
    x, union = torch.empty(shape, dtype=dtype, device="meta"), torch.empty(shape, dtype=torch.uint8, device="meta")
    with Operations() as operations:
        sketch_triton.start_sketch(x, ladder=LADDER, union=union, scale=scale)
    assert len(launches) + operations.counts.total() <= 12, (launches, operations.counts)
    n_bytes = sum(arrays[name].nbytes for kernel, arrays in launches for name in WHOLE[kernel])
    # Zeros that it begins with.
    n_bytes += next(arrays["histogram"].nbytes for kernel, arrays in launches if kernel == "tally")
    if dtype != torch.float32 and scale == "none":
        assert n_bytes / x.numel() <= 10


def test_nothing_is_written_outside_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    fenced: list[tuple[Tensor, int]] = []
    plain = Tensor.new_empty

    def new_empty(like: Tensor, shape: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
        if dtype is None or options:
            return plain(like, shape, dtype=dtype, **options)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        whole = torch.full((n_bytes + 2 * FENCE,), 0xA5, dtype=torch.uint8)
        fenced.append((whole, n_bytes))
        return whole[FENCE : FENCE + n_bytes].view(dtype).view(shape)

    monkeypatch.setattr(Tensor, "new_empty", new_empty)
    monkeypatch.setattr(Tensor, "new_zeros", lambda like, shape, dtype: new_empty(like, shape, dtype=dtype).zero_())
    for scale in SCALES:
        for shape in [(2, 17, 19), (1, 1, 1)]:
            x = dense(*shape, dtype=torch.bfloat16)
            union = new_empty(x, shape, dtype=torch.uint8).zero_()
            sketch_triton.sketch_site(x, ladder=LADDER, union=union, scale=scale)
            sketch_triton.sketch_union(union)
    assert len(fenced) > 20
    for whole, n_bytes in fenced:
        assert (whole[:FENCE] == 0xA5).all() and (whole[FENCE + n_bytes :] == 0xA5).all()


def test_a_card_whose_kernels_fail_gets_torch_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("ptxas fatal : no such architecture")

    x, union = dense(1, 20, 24), torch.zeros((1, 20, 24), dtype=torch.uint8)
    expected = sketch_torch.sketch_site(x, ladder=LADDER, union=None, scale="none")
    monkeypatch.setattr(sketch_triton, "start_sketch", fails)
    card = Card()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_same(expected, card.sketch_site(x, ladder=LADDER, union=union, scale="none"))
    assert [record.message.count("no such architecture") for record in caplog.records] == [1]
    assert card.sketch_union(union).top_step.max() == union.max().item()


def test_memory_that_runs_out_is_no_failure_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError

    card, x = Card(), dense(1, 20, 24)
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(sketch_triton, "start_sketch", runs_out)
        card.sketch_site(x, ladder=LADDER, union=None, scale="none")
    assert card.sketch_site(x, ladder=LADDER, union=None, scale="none").n_features == 24


@pytest.mark.parametrize("compute_capability", [80, 90, 100])
def test_the_kernels_compile_for_cards_without_spills(compute_capability: int) -> None:
    """In a process of its own, since here Triton interprets."""
    command = [sys.executable, "-m", "tests.unit.recording.compile_for_cards", str(compute_capability)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = [line.split() for line in done.stdout.splitlines()]
    assert {name for name, *_ in used} == set(WHOLE) | {"tally_union"}
    for name, registers, spilled, shared in used:
        assert int(spilled) == 0, name
        assert int(registers) <= 255 and int(shared) <= 48 * 1024, name
