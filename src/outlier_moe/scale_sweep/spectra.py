"""Ranks of matrices from their singular values, and how sparse activations are: definitions with their sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

NEAR_ZERO = 1e-3
"""|a| below which an activation counts as near zero. Absolute, as the fraction's users have it; activations of a GELU
behind a norm are of the order of 1."""


class Spectrum(NamedTuple):
    """The ranks of a matrix. Each lies between 1 and min(m, n)."""

    effective_rank: float
    """exp of the entropy of the singular values, made to add up to 1 (Roy and Vetterli 2007)."""
    effective_rank_share: float
    """The same over min(m, n)."""
    stable_rank: float
    """Sum of the squared singular values over the largest of them (Rudelson and Vershynin 2007)."""
    participation_ratio: float
    """(sum of the squared singular values)^2 over the sum of their fourth powers (Gao et al. 2017)."""


def spectrum(matrix: Float[Tensor, "row column"]) -> Spectrum | None:
    """The ranks of a matrix; None if it is zero or has a value that is not finite."""
    return spectra([matrix])[0]


def spectra(matrices: Sequence[Float[Tensor, "_row _column"]]) -> list[Spectrum | None]:
    """The ranks of each of some matrices, those of one shape together; None as for `spectrum`.

    Singular values are those of float64: in float32 the small ones, which the entropy counts, are rounding.
    """
    found: list[Spectrum | None] = [None] * len(matrices)
    by_shape: dict[torch.Size, list[int]] = {}
    # Of a matrix and its transpose, which have the same ones, LAPACK takes two to five times as long for the wide one.
    tall = [matrix.detach() if matrix.shape[0] >= matrix.shape[1] else matrix.detach().mT for matrix in matrices]
    for index, matrix in enumerate(tall):
        by_shape.setdefault(matrix.shape, []).append(index)
    for shape, members in by_shape.items():
        wide = torch.stack([tall[index] for index in members]).to("cpu", torch.float64)
        # The largest of numbers that one of is nan is nan.
        largest = wide.abs().amax(dim=(1, 2))
        has_rank = largest.isfinite() & (largest > 0)
        sigma = torch.linalg.svdvals(wide[has_rank])
        ranked = [index for index, there in zip(members, has_rank.tolist(), strict=True) if there]
        for index, of_matrix in zip(ranked, _ranks(sigma, n_most=min(shape)), strict=True):
            found[index] = of_matrix
    return found


def _ranks(sigma: Float64[Tensor, "matrix value"], *, n_most: int) -> list[Spectrum]:
    """The ranks that belong to some singular values, not all zero, of matrices of a rank of `n_most` at most."""
    share = sigma / sigma.sum(dim=1, keepdim=True)
    # 0 log 0 is 0.
    rank = (-torch.special.xlogy(share, share).sum(dim=1)).exp()
    # The ratios do not change, and no square leaves the range of a float.
    power = (sigma / sigma.amax(dim=1, keepdim=True)) ** 2
    participation = power.sum(dim=1) ** 2 / (power**2).sum(dim=1)
    columns = (rank, rank / n_most, power.sum(dim=1), participation)
    return [Spectrum(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def feature_spectrum(features: Float[Tensor, "sample feature"]) -> Spectrum | None:
    """The ranks of features over samples, each feature's mean taken off; None if they do not vary."""
    wide = features.detach().to("cpu", torch.float64)
    return spectrum(wide - wide.mean(dim=0))


class Sparsity(NamedTuple):
    """How sparse activations are, in three ways, which disagree."""

    share_nonpositive: float
    """Those that are 0 or below: what a ReLU would have made zero."""
    share_near_zero: float
    """Those with |a| < `NEAR_ZERO`."""
    hoyer: float | None
    """Hoyer's sparseness (2004) of each token's vector, the mean of the tokens: 0 if all entries are as large, 1 if
    one has all; a vector of zeros, whose sparseness is not defined, does not count. None if every vector is one, as
    behind a GELU that is dead."""


def hoyer(activations: Float[Tensor, "token feature"]) -> Float64[Tensor, " token"]:
    """Hoyer's sparseness of each row: (sqrt(n) - |a|_1 / |a|_2) / (sqrt(n) - 1); nan for a row of zeros."""
    wide = activations.double()
    root = math.sqrt(wide.shape[1])
    return (root - wide.abs().sum(dim=1) / wide.norm(dim=1)) / (root - 1)


class SparsityTally:
    """Adds up the sparsity of activations that come in pieces."""

    def __init__(self) -> None:
        self.n = self.n_rows = 0
        self.n_nonpositive = self.n_near_zero = 0
        self.hoyer = 0.0

    def add(self, activations: Float[Tensor, "token feature"]) -> None:
        """Take in more tokens."""
        self.n += activations.numel()
        self.n_nonpositive += int((activations <= 0).sum())
        self.n_near_zero += int((activations.abs() < NEAR_ZERO).sum())
        of_rows = hoyer(activations)
        defined = of_rows[of_rows.isfinite()]
        self.n_rows += len(defined)
        self.hoyer += defined.sum().item()

    def result(self) -> Sparsity:
        """The sparsity of all."""
        mean = self.hoyer / self.n_rows if self.n_rows else None
        return Sparsity(self.n_nonpositive / self.n, self.n_near_zero / self.n, mean)
