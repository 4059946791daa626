"""The sketch against its definitions, its two implementations against each other, and what must not matter to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jaxtyping import Float32
from torch import Tensor

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.errors import StudyError
from outlier_moe.recording import sketch as either
from outlier_moe.recording import sketch_numba, sketch_torch
from outlier_moe.recording.sketch import sketch_site, sketch_union
from outlier_moe.recording.tally import Scale, SiteSketch
from tests.unit.recording.plain_sketch import PlainRow, divided_by_token_rms, plain_sketch, plain_steps

IMPLEMENTATIONS = [sketch_numba, sketch_torch]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCALES: list[Scale] = ["none", "token_rms"]
LADDER = Ladder(3.0)
SUMMARIES = [
    "rms",
    "median_magnitude",
    "top_magnitude",
    "kurtosis_of_feature_rms",
    "excess_kurtosis",
    "n_nonfinite",
]

EDGES = LADDER.edges[[0, 1, 8, 50, 254]]
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 6e-8, -(2.0**-126), 3e38, -1e12, 23085.0]
BESIDE_EDGES = [*EDGES, *-EDGES, *np.nextafter(EDGES, np.float32(0)), *np.nextafter(EDGES, np.float32(np.inf))]
values = st.one_of(
    st.sampled_from([np.float32(value) for value in [*SPECIAL, *BESIDE_EDGES]]),
    st.floats(-100, 100, width=32),
    st.floats(width=32),
)
activations = arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 20)),
    elements=values,
    fill=st.one_of(st.just(np.float32(0)), values),
)


def tensor_of(x: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(x.copy()).to(dtype)


def dense(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Like a residual stream: features of very different sizes, some outliers, some values that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape[-1], generator=generator))
    x[torch.rand(shape, generator=generator) < 0.001] *= 1e3
    x[torch.rand(shape, generator=generator) < 0.001] = torch.nan
    return x.to(dtype)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(sketch: SiteSketch) -> list[PlainRow]:
    ends = sketch.offsets[1:-1]
    columns = [
        sketch.sequence,
        sketch.feature,
        sketch.peak,
        sketch.peak_position,
        sketch.peak_value,
        sketch.first_token_magnitude,
        sketch.later_peak,
        sketch.later_peak_position,
    ]
    lists = np.split(sketch.n_positions, ends) if len(sketch.sequence) else []
    return [
        PlainRow(*row, n_positions=counts.tolist())
        for row, counts in zip(zip(*(column.tolist() for column in columns), strict=True), lists, strict=True)
    ]


def assert_same(a: SiteSketch, b: SiteSketch, *, relative: float = 0) -> None:
    for name, one, other in zip(SiteSketch._fields, a, b, strict=True):
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None), name
        if name == "excess_kurtosis":
            one, other = one + 3, other + 3
        if name in ("rms", "kurtosis_of_feature_rms", "excess_kurtosis"):
            np.testing.assert_allclose(one, other, rtol=relative, atol=0, err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


def median_of_a_sample(x: Tensor, ladder: Ladder, scale: Scale) -> Float32[np.ndarray, " sequence"]:
    """The medians as those of long sequences are found."""
    with patch.object(sketch_numba, "FEW", 0):
        return sketch_numba.sketch_site(x, ladder=ladder, union=None, scale=scale).median_magnitude


def assert_plain(x: Tensor, ladder: Ladder, scale: Scale, implementation: ModuleType) -> None:
    union = torch.zeros(x.shape, dtype=torch.uint8)
    sketch = implementation.sketch_site(x, ladder=ladder, union=union, scale=scale)
    exact = x.float().numpy()
    if scale == "token_rms":
        exact = np.stack([divided_by_token_rms(sequence) for sequence in exact])
    plain = plain_sketch(exact, ladder)
    assert rows_of(sketch) == plain.rows
    np.testing.assert_array_equal(union.numpy(), plain_steps(exact, ladder))
    np.testing.assert_array_equal(sketch.median_magnitude, np.array(plain.median_magnitude, np.float32))
    np.testing.assert_array_equal(sketch.median_magnitude, median_of_a_sample(x, ladder, scale))
    np.testing.assert_array_equal(sketch.top_magnitude, np.array(plain.top_magnitude, np.float32))
    np.testing.assert_array_equal(sketch.n_nonfinite, plain.n_nonfinite)
    np.testing.assert_allclose(sketch.rms, plain.rms, rtol=1e-12)
    np.testing.assert_allclose(sketch.kurtosis_of_feature_rms, plain.kurtosis_of_feature_rms, rtol=1e-12)
    np.testing.assert_allclose(sketch.excess_kurtosis, plain.excess_kurtosis, rtol=1e-12, atol=3e-12)
    assert sketch.n_features == x.shape[2]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25)
@given(x=activations)
def test_any_tensor_equals_the_definitions(
    x: np.ndarray, dtype: torch.dtype, scale: Scale, implementation: ModuleType
) -> None:
    assert_plain(tensor_of(x, dtype), LADDER, scale, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("floor", [2.0**-126, 2.0**-24, 0.875, 2.0**90])
def test_any_floor_equals_the_definitions(floor: float, implementation: ModuleType) -> None:
    edges = Ladder(floor).edges[[0, 1, 7, 200, 254]]
    beside = np.concatenate(
        [edges, -edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))]
    )
    x = np.random.default_rng(0).permutation(np.tile(beside, 6)).reshape(1, 24, 5)
    assert_plain(torch.from_numpy(x), Ladder(floor), "none", implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [0.0, 3.1, -1e30, float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 33, 17)])
def test_a_constant_tensor_has_no_kurtosis(value: float, shape: tuple[int, ...], implementation: ModuleType) -> None:
    x = torch.full(shape, value)
    assert_plain(x, LADDER, "none", implementation)
    assert np.isnan(implementation.sketch_site(x, ladder=LADDER, union=None, scale="none").excess_kurtosis).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_distant_mean_costs_the_kurtosis_no_digits(implementation: ModuleType) -> None:
    x = 1000 + torch.randn((1, 300, 20), generator=torch.Generator().manual_seed(0)) / 1000
    assert_plain(x, LADDER, "none", implementation)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 300, 576), (1, 65, 130), (3, 31, 64), (1, 2, 1100)])
def test_both_implementations_say_the_same(shape: tuple[int, ...], dtype: torch.dtype, scale: Scale) -> None:
    x = dense(*shape, dtype=dtype)
    unions = [torch.zeros(shape, dtype=torch.uint8) for _ in range(2)]
    a, b = (
        implementation.sketch_site(x, ladder=LADDER, union=union, scale=scale)
        for implementation, union in zip([sketch_numba, sketch_torch], unions, strict=True)
    )
    assert_same(a, b, relative=1e-12)
    assert torch.equal(*unions)


def test_torch_in_blocks_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = dense(2, 100, 40)
    whole = sketch_torch.sketch_site(x, ladder=LADDER, union=None, scale="token_rms")
    monkeypatch.setattr(sketch_torch, "BLOCK", 7 * 40)
    assert_same(whole, sketch_torch.sketch_site(x, ladder=LADDER, union=None, scale="token_rms"), relative=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("n_sequences", [1, 3, 4])
def test_threads_do_not_matter(n_sequences: int, scale: Scale) -> None:
    x = dense(n_sequences, 200, 600)
    sketches = []
    for n in (1, 2, 3, 8):
        with threads(n):
            sketches.append(sketch_site(x, ladder=LADDER, scale=scale))
    for other in sketches[1:]:
        assert_same(sketches[0], other)


@pytest.mark.parametrize("scale", SCALES)
def test_chunks_do_not_matter(scale: Scale) -> None:
    x = dense(4, 100, 150)
    whole = sketch_site(x, ladder=LADDER, scale=scale)
    for s in range(4):
        alone = sketch_site(x[s : s + 1], ladder=LADDER, scale=scale)
        assert rows_of(alone) == [replace(row, sequence=0) for row in rows_of(whole) if row.sequence == s]
        for name in SUMMARIES:
            np.testing.assert_array_equal(getattr(alone, name), getattr(whole, name)[s : s + 1], err_msg=name)


@pytest.mark.parametrize("implementation", [either, sketch_torch])
def test_strides_do_not_matter(implementation: ModuleType) -> None:
    x, union = dense(2, 50, 40), torch.zeros((2, 50, 60), dtype=torch.uint8)[:, :, 7:47]
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    kept = torch.zeros(x.shape, dtype=torch.uint8)
    a = implementation.sketch_site(x, ladder=LADDER, union=kept, scale="none")
    b = implementation.sketch_site(strided, ladder=LADDER, union=union, scale="none")
    assert_same(a, b, relative=1e-12)
    assert torch.equal(kept, union)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(2, 70, 33), (1, 1, 5)])
def test_a_union_keeps_the_largest_step_of_all_sites(shape: tuple[int, ...], implementation: ModuleType) -> None:
    sites = [dense(*shape, seed=seed) for seed in range(3)]
    union = torch.zeros(shape, dtype=torch.uint8)
    for x in sites:
        implementation.sketch_site(x, ladder=LADDER, union=union, scale="none")
    steps = np.max([plain_steps(x.numpy(), LADDER) for x in sites], axis=0)
    np.testing.assert_array_equal(union.numpy(), steps)
    sketch = implementation.sketch_union(union)
    s, f = np.nonzero(steps.max(axis=1))
    np.testing.assert_array_equal(sketch.sequence, s)
    np.testing.assert_array_equal(sketch.feature, f)
    np.testing.assert_array_equal(sketch.top_step, steps.max(axis=1)[s, f])
    np.testing.assert_array_equal(sketch.first_token_step, steps[s, 0, f])
    np.testing.assert_array_equal(sketch.later_top_step, steps[:, 1:].max(axis=1, initial=0)[s, f])
    lists = np.split(sketch.n_positions, sketch.offsets[1:-1])
    for counts, column, top in zip(lists, steps[s, :, f], sketch.top_step, strict=True):
        np.testing.assert_array_equal(counts, [(column >= step).sum() for step in range(1, top + 1)])


@pytest.mark.parametrize("kind", ["spread", "one common value", "mostly zero", "two values", "sorted"])
@pytest.mark.parametrize("errors", [0, 3])
def test_the_median_is_exact_whatever_the_bracket(kind: str, errors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn((1, 1500, 200), generator=torch.Generator().manual_seed(1))
    if kind == "one common value":
        x[:, :, :120] = 0.5
    elif kind == "mostly zero":
        x[:, :, :120] = 0
    elif kind == "two values":
        x = x.sign() + 3
    elif kind == "sorted":
        x = x.flatten().sort().values.reshape(x.shape)
    monkeypatch.setattr(sketch_numba, "STANDARD_ERRORS", errors)
    magnitudes = x.abs().flatten().sort().values
    sketch = sketch_site(x, ladder=LADDER)
    assert sketch.median_magnitude.item() == magnitudes[(len(magnitudes) - 1) // 2].item()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flushed_denormals_are_counted_all_the_same(dtype: torch.dtype, implementation: ModuleType) -> None:
    x = torch.tensor([2.0**-24, -(2.0**-20), 2.0**-14, 1e-40, 5.0]).reshape(1, 5, 1).to(dtype)
    expected = implementation.sketch_site(x, ladder=Ladder(2.0**-24), union=None, scale="none")
    assert expected.n_positions[0] == 4
    if not torch.set_flush_denormal(True):
        pytest.skip("This processor flushes no denormals.")
    try:
        flushed = implementation.sketch_site(x, ladder=Ladder(2.0**-24), union=None, scale="none")
    finally:
        torch.set_flush_denormal(False)
    assert_same(expected, flushed, relative=1e-12)


def test_float64_is_rounded_to_float32_first() -> None:
    x = dense(1, 40, 30).double() * (1 + 1e-9)
    assert_same(sketch_site(x.requires_grad_(), ladder=LADDER), sketch_site(x.detach().float(), ladder=LADDER))


def test_as_many_positions_as_16_bits_number_are_counted() -> None:
    x = torch.full((1, 65535, 1), 4.0)
    sketch = sketch_site(x, ladder=LADDER)
    assert sketch.n_positions.tolist() == [65535] * 5
    assert (sketch.peak_position.item(), sketch.later_peak_position.item()) == (0, 1)


def test_more_positions_than_16_bits_number_are_refused() -> None:
    with pytest.raises(StudyError, match=r"tokenize_corpus\.sequence_length"):
        sketch_site(torch.zeros(1, 65536, 1), ladder=LADDER)
    with pytest.raises(StudyError, match=r"tokenize_corpus\.sequence_length"):
        sketch_union(torch.zeros((1, 65536, 1), dtype=torch.uint8), LADDER)


def test_torch_keeps_its_number_of_threads() -> None:
    program = (
        "import torch; torch.set_num_threads(1); import outlier_moe.recording.sketch_numba; "
        "print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "1"
