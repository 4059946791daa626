"""The sketch on the CPU: compiled loops over ranges of features, on as many threads as torch would use."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt8, UInt16, UInt32
from numba import get_num_threads, set_num_threads
from torch import Tensor

from outlier_moe.definitions.ladder import N_EDGES, Ladder
from outlier_moe.recording import kernels
from outlier_moe.recording.tally import Scale, SiteSketch, Tally, UnionSketch, site_sketch, union_sketch

FORMATS = {torch.float32: kernels.FLOAT32, torch.bfloat16: kernels.BFLOAT16, torch.float16: kernels.FLOAT16}


def _most_threads() -> int:
    """The number of threads that numba may use."""
    n_torch = torch.get_num_threads()
    n_threads = get_num_threads()
    # Numba, starting its threads, tells OpenMP how many there are; where both share one runtime, torch too is told.
    torch.set_num_threads(n_torch)
    return n_threads


MOST_THREADS = _most_threads()
# A range with fewer features (or positions) costs more to start than it saves; what belongs to one with more does not
# fit the cache.
SHORTEST_RANGE = 64
LONGEST_RANGE = 512
# Runs, and magnitudes in each, that the bracket of the median is judged from. It reaches three standard errors of the
# sample's median rank to both sides; where it misses all the same, the median costs 31 more passes.
SAMPLE = (512, 16)
STANDARD_ERRORS = 3
# Of a sequence with no more magnitudes than two samples the median is found sooner without.
FEW = 2 * math.prod(SAMPLE)
NO_BRACKET = np.array([1, 0], np.uint32)


class _Sequence(NamedTuple):
    """One sequence's activations as the compiled loops take them."""

    bits: Shaped[np.ndarray, "position feature"]
    """Their bit patterns."""
    kind: int
    """Their format."""
    divisors: Float32[np.ndarray, " position"]
    """What each token's activations are divided by."""


def _share_out(length: int) -> int:
    """Into how many ranges of equal length to divide features or positions, so that all threads have one.

    The threads are as many as torch uses.
    """
    n_threads = min(torch.get_num_threads(), MOST_THREADS)
    if n_threads != get_num_threads():
        set_num_threads(n_threads)
    n_ranges = max(1, min(n_threads, length // SHORTEST_RANGE))
    return n_ranges * -(-length // (n_ranges * LONGEST_RANGE))


def _sequence(x: Float[Tensor, "position feature"], scale: Scale) -> _Sequence:
    integer, unsigned = (torch.int32, np.uint32) if x.dtype == torch.float32 else (torch.int16, np.uint16)
    bits = x.contiguous().view(integer).numpy().view(unsigned)
    sequence = _Sequence(bits, FORMATS[x.dtype], np.ones(len(x), np.float32))
    if scale == "token_rms":
        kernels.token_rms(sequence.bits, sequence.kind, _share_out(len(x)), sequence.divisors)
    return sequence


def _bracket(sequence: _Sequence) -> UInt32[np.ndarray, " low_and_width=2"]:
    """Bit patterns that most likely hold the median of the magnitudes: the lowest, and how many from there on."""
    n_runs, length = SAMPLE
    sampled = np.empty((n_runs, min(length, sequence.bits.shape[1])), np.uint32)
    kernels.sample(*sequence, sampled)
    # Bit patterns of magnitudes are ordered as the magnitudes are; what is not finite comes last.
    magnitudes = np.sort(sampled, axis=None)
    n = int(np.searchsorted(magnitudes, kernels.INFINITY))
    if n == 0:
        return NO_BRACKET
    middle, error = (n - 1) // 2, math.ceil(STANDARD_ERRORS * 0.5 * math.sqrt(n))
    low = max(1, int(magnitudes[max(0, middle - error)]))
    high = int(magnitudes[min(n - 1, middle + error)])
    return np.array([low, max(0, high - low + 1)], np.uint32)


def _median(
    sequence: _Sequence, inside: UInt32[np.ndarray, " value"], n_below: Int64[np.ndarray, " range"], n_finite: int
) -> np.float32:
    """The lower median of the magnitudes: from inside the bracket (put in another order), or, if that missed, all."""
    if n_finite == 0:
        return np.float32(0)
    rank = (n_finite - 1) // 2
    rank_inside = rank - int(n_below.sum())
    if 0 <= rank_inside < len(inside) and np.all(n_below >= 0):
        inside.partition(rank_inside)
        return inside[rank_inside].view(np.float32)
    return _median_by_bisection(sequence, rank)


def _median_of_few(sequence: _Sequence, n_finite: int) -> np.float32:
    """The lower median of few magnitudes: of all of them, put in another order."""
    if n_finite == 0:
        return np.float32(0)
    magnitudes = np.empty(sequence.bits.shape, np.uint32)
    kernels.sample(*sequence, magnitudes)
    # What is not finite comes last.
    return np.partition(magnitudes, (n_finite - 1) // 2, axis=None)[(n_finite - 1) // 2].view(np.float32)


def _median_by_bisection(sequence: _Sequence, rank: int) -> np.float32:
    """The magnitude of a rank, in 31 passes: the largest bit pattern that no more than `rank` magnitudes are below."""
    low, high = 0, int(kernels.INFINITY)
    while high - low > 1:
        middle = (low + high) // 2
        if kernels.count_below(*sequence, np.uint32(middle)) <= rank:
            low = middle
        else:
            high = middle
    return np.uint32(low).view(np.float32)


class _Outputs(NamedTuple):
    """What the threads fill in, each its own range of features; one more dimension in front, the sequence."""

    peaks: UInt32[np.ndarray, "*sequence what=4 feature"]
    """|x| at position 0, the largest later |x|, its position, and x where |x| peaks; as bits."""
    top_step: UInt8[np.ndarray, "*sequence feature"]
    """The largest step."""
    sums: Shaped[np.ndarray, "*sequence power=4 feature"]
    """Sums of x, x**2, x**3, x**4."""
    n_nonfinite: Int64[np.ndarray, "*sequence feature"]
    """Values left out."""

    def of(self, s: int) -> _Outputs:
        """One sequence's."""
        return _Outputs(*(array[s] for array in self))


def _outputs(n_sequences: int, n_features: int) -> _Outputs:
    return _Outputs(
        np.zeros((n_sequences, 4, n_features), np.uint32),
        np.zeros((n_sequences, n_features), np.uint8),
        np.zeros((n_sequences, 4, n_features), np.float64),
        np.zeros((n_sequences, n_features), np.int64),
    )


def _tally(
    sequence: _Sequence, union: UInt8[np.ndarray, "position feature"], ladder: Ladder, out: _Outputs
) -> tuple[UInt16[np.ndarray, " count"], np.float32]:
    """Fill in one sequence's outputs; returns its counts at the edges, feature after feature, and its median."""
    n_positions, n_features = sequence.bits.shape
    n_ranges = _share_out(n_features)
    few = sequence.bits.size <= FEW
    counts = np.empty((n_features, N_EDGES), np.uint16)
    # The bracket is meant for some per cent of the values. More than an eighth, as where one value is very common, are
    # not kept; from one tile of positions to the next there must be room for a whole one.
    lanes = kernels.whole_lanes(-(-n_features // n_ranges))
    inside = np.empty((n_ranges, (n_positions // 8 + 2 * kernels.ROWS) * lanes), np.uint32)
    n_found = np.empty((n_ranges, 3), np.int64)
    bracket = NO_BRACKET if few else _bracket(sequence)
    kernels.tally_sequence(*sequence, union, ladder.floor_rung, bracket, n_ranges, *out, counts, inside, n_found)
    starts = [n_features * i // n_ranges for i in range(n_ranges)]
    kept = [counts[start:].reshape(-1)[:n] for start, n in zip(starts, n_found[:, 0], strict=True)]
    n_finite = n_positions * n_features - int(out.n_nonfinite.sum())
    if few:
        return np.concatenate(kept), _median_of_few(sequence, n_finite)
    collected = np.concatenate([part[:n] for part, n in zip(inside, n_found[:, 1], strict=True)])
    return np.concatenate(kept), _median(sequence, collected, n_found[:, 2], n_finite)


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site."""
    n_sequences, n_positions, n_features = x.shape
    sequences = [_sequence(each, scale) for each in x]
    unions = np.empty((n_sequences, 0, n_features), np.uint8) if union is None else union.numpy()
    out = _outputs(n_sequences, n_features)
    tallied = [_tally(sequence, unions[s], ladder, out.of(s)) for s, sequence in enumerate(sequences)]
    tally = Tally(
        first=out.peaks[:, 0].view(np.float32),
        later=out.peaks[:, 1].view(np.float32),
        later_position=out.peaks[:, 2].astype(np.uint16),
        peak_value=out.peaks[:, 3].view(np.float32),
        top_step=out.top_step,
        n_positions=np.concatenate([counts for counts, _ in tallied]),
        sums=out.sums,
        n_nonfinite=out.n_nonfinite,
        median=np.array([median for _, median in tallied]),
    )
    return site_sketch(
        tally,
        n_positions=n_positions,
        central_sums=lambda s, centre: kernels.central_sums(*sequences[s], centre).sum(axis=1),
    )


def sketch_union(union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
    """The counts over a union."""
    steps = np.ascontiguousarray(union.numpy())
    top, later = (np.zeros((len(steps), steps.shape[2]), np.uint8) for _ in range(2))
    counts = [kernels.tally_union(sequence, top[s], later[s]) for s, sequence in enumerate(steps)]
    return union_sketch(top, steps[:, 0], later, np.concatenate(counts))
