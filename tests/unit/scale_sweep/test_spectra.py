"""Ranks and sparsity against matrices whose figures are known, and against plain versions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from outlier_moe.scale_sweep import spectra
from outlier_moe.scale_sweep.spectra import NEAR_ZERO, SparsityTally, Spectrum, each, feature_spectrum, hoyer, spectrum


def test_every_rank_of_an_identity_is_its_size() -> None:
    found = spectrum(3 * torch.eye(7, 12))
    assert found is not None
    assert tuple(found) == pytest.approx((7, 1, 7, 7))


def test_every_rank_of_an_outer_product_is_one() -> None:
    found = spectrum(torch.outer(torch.arange(1.0, 6), torch.arange(2.0, 10)))
    assert found is not None
    # Rounding leaves singular values of 1e-16, which count as little as that.
    assert tuple(found) == pytest.approx((1, 1 / 5, 1, 1), abs=1e-9)


def test_a_known_spectrum_gives_the_definitions_values() -> None:
    sigma = [4.0, 2.0, 1.0, 1.0]
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(9, 4).double())[0], torch.linalg.qr(torch.randn(6, 4).double())[0]
    found = spectrum((left * torch.tensor(sigma)) @ right.T)
    entropy = -sum(s / 8 * math.log(s / 8) for s in sigma)
    squares = [s**2 for s in sigma]
    assert found is not None
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-6)
    assert found.effective_rank_share == pytest.approx(math.exp(entropy) / 6, rel=1e-6)
    assert found.stable_rank == pytest.approx(22 / 16)
    assert found.participation_ratio == pytest.approx(22**2 / sum(s**2 for s in squares))


@pytest.mark.parametrize("of", [spectrum, feature_spectrum])
def test_threads_change_no_rank(of: Callable[[Tensor], Spectrum | None], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(300, 400), torch.zeros(4, 6), torch.randn(3, 3), torch.full((3, 3), math.inf)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = each(of, matrices)
    assert [ranks is None for ranks in alone] == [False, True, False, True]
    in_threads: set[int] = set()

    def seen(matrix: Tensor) -> Spectrum | None:
        in_threads.add(torch.get_num_threads())
        return of(matrix)

    monkeypatch.setattr(spectra, "WORTH_THREADS", 1)
    try:
        torch.set_num_threads(3)
        assert each(seen, matrices) == alone
        assert each(seen, []) == []
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert in_threads == {1}


def test_a_transpose_has_the_same_ranks() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(4, 6)
    of_matrix = spectrum(matrix)
    assert of_matrix is not None
    assert of_matrix == spectrum(matrix.T)
    sigma = torch.linalg.svdvals(matrix.double())
    assert of_matrix.stable_rank == pytest.approx((sigma.square().sum() / sigma[0].square()).item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_ranks_know_no_unit(scale: float) -> None:
    matrix = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    small, usual = spectrum(matrix * scale), spectrum(matrix)
    assert small is not None and usual is not None
    assert tuple(small) == pytest.approx(tuple(usual))


def test_what_has_no_rank_has_none() -> None:
    assert spectrum(torch.zeros(3, 3)) is None
    assert spectrum(torch.tensor([[1.0, math.nan]])) is None
    assert feature_spectrum(torch.ones(5, 3)) is None


def test_features_are_centred() -> None:
    varying = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    found = feature_spectrum(varying + torch.tensor([100.0, 70.0]))
    assert found is not None
    assert found.stable_rank == pytest.approx(1)


def test_hoyer_of_known_vectors() -> None:
    rows = torch.tensor([[1.0, 0, 0, 0], [2, 2, -2, 2], [3, 4, 0, 0], [0, 0, 0, 0]])
    assert hoyer(rows)[:3].tolist() == pytest.approx([1, 0, 2 - 7 / 5])
    assert hoyer(rows)[3].isnan()


def test_zeros_alone_have_shares_and_no_sparseness() -> None:
    tally = SparsityTally()
    tally.add(torch.zeros(3, 8))
    assert tuple(tally.result()) == (1, 1, None)


def test_sparsity_in_pieces_is_what_its_plain_version_gives() -> None:
    torch.manual_seed(0)
    pieces = [torch.randn(3, 8), torch.relu(torch.randn(5, 8)), torch.zeros(1, 8)]
    tally = SparsityTally()
    for piece in pieces:
        tally.add(piece)
    rows = [row for piece in pieces for row in piece.tolist()]
    values = [value for row in rows for value in row]

    def plain_hoyer(row: list[float]) -> float:
        ratio = sum(map(abs, row)) / math.sqrt(sum(v * v for v in row))
        return (math.sqrt(len(row)) - ratio) / (math.sqrt(len(row)) - 1)

    found = tally.result()
    assert found.share_nonpositive == pytest.approx(sum(v <= 0 for v in values) / len(values))
    assert found.share_near_zero == pytest.approx(sum(abs(v) < NEAR_ZERO for v in values) / len(values))
    assert found.hoyer == pytest.approx(sum(plain_hoyer(row) for row in rows if any(row)) / 8, rel=1e-5)
