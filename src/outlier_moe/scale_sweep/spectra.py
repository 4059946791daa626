"""Ranks of matrices from their singular values, and how sparse activations are: definitions with their sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

NEAR_ZERO = 1e-3
"""|a| below which an activation counts as near zero. Absolute, as the fraction's users have it; activations of a GELU
behind a norm are of the order of 1."""
WORTH_THREADS = 2**18
"""Elements of some matrices for which starting threads takes less time than it saves."""


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
    """The ranks of a matrix; None if it is zero or has a value that is not finite.

    Singular values are those of float64: in float32 the small ones, which the entropy counts, are rounding.
    """
    wide = matrix.detach().to("cpu", torch.float64)
    # The largest of numbers that one of is nan is nan.
    largest = wide.abs().max().item()
    if not 0 < largest < math.inf:
        return None
    # A matrix and its transpose have the same ones; for the wide of the two LAPACK takes two to five times as long.
    sigma = torch.linalg.svdvals(wide if wide.shape[0] >= wide.shape[1] else wide.mT)
    return _ranks(sigma)


def _ranks(sigma: Float64[Tensor, " value"]) -> Spectrum:
    """The ranks that belong to a matrix' singular values, largest first and not all zero."""
    share = sigma / sigma.sum()
    # 0 log 0 is 0.
    rank = (-torch.special.xlogy(share, share).sum()).exp().item()
    # The ratios do not change, and no square leaves the range of a float.
    power = (sigma / sigma[0]) ** 2
    total = power.sum()
    return Spectrum(rank, rank / len(sigma), total.item(), (total**2 / (power**2).sum()).item())


def feature_spectrum(features: Float[Tensor, "sample feature"]) -> Spectrum | None:
    """The ranks of features over samples, each feature's mean taken off; None if they do not vary."""
    wide = features.detach().to("cpu", torch.float64)
    return spectrum(wide - wide.mean(dim=0))


def each(of: Callable[[Tensor], Spectrum | None], matrices: Sequence[Tensor]) -> list[Spectrum | None]:
    """The ranks of each of some matrices: a matrix a thread, of which there are as many as torch would use.

    LAPACK finds singular values little sooner with more threads than one.

    Args:
        of: `spectrum` or `feature_spectrum`.
        matrices: The matrices, of any shapes.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1 or sum(matrix.numel() for matrix in matrices) < WORTH_THREADS:
        return list(map(of, matrices))
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(of, matrices))
    finally:
        # Each thread has a number of its own, and torch gives new ones what was said last.
        torch.set_num_threads(n_threads)


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
