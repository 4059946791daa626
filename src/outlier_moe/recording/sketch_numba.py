"""The sketch on the CPU: compiled loops over ranges of features, on as many threads as torch would use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Shaped, UInt8, UInt16, UInt32
from torch import Tensor

from outlier_moe.ladder import Ladder
from outlier_moe.recording import kernels
from outlier_moe.recording.tally import Scale, SiteSketch, Tally, UnionSketch, site_sketch, union_sketch

T = TypeVar("T")

FORMATS = {torch.float32: kernels.FLOAT32, torch.bfloat16: kernels.BFLOAT16, torch.float16: kernels.FLOAT16}

# A range with fewer features (or positions) costs more to start than it saves; what belongs to one with more does not
# fit the cache.
SHORTEST_RANGE = 64
LONGEST_RANGE = 512
# Runs, and magnitudes in each, that the bracket of the median is judged from. It reaches three standard errors of the
# sample's median rank to both sides; where it misses all the same, the median costs 31 more passes.
SAMPLE = (512, 32)
STANDARD_ERRORS = 3


class _Sequence(NamedTuple):
    """One sequence's activations as the compiled loops take them."""

    bits: Shaped[np.ndarray, "position feature"]
    """Their bit patterns."""
    kind: int
    """Their format."""
    divisors: Float32[np.ndarray, " position"]
    """What each token's activations are divided by."""


class _Part(NamedTuple):
    """What one range of a sequence's features came to."""

    n_positions: UInt16[np.ndarray, " count"]
    """The counts at the edges, feature after feature."""
    inside: UInt32[np.ndarray, " value"]
    """The magnitudes inside the bracket."""
    n_below: int
    """How many lie below it; -1 if not all that are inside were kept."""


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="sketch")


def _at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """The tasks' results, in order; they run on torch's number of threads, this one among them."""
    n_threads = min(torch.get_num_threads(), len(tasks))

    def share(first: int) -> list[T]:
        return [task() for task in tasks[first::n_threads]]

    others = [_pool(n_threads - 1).submit(share, i) for i in range(1, n_threads)]
    shares = [share(0), *(other.result() for other in others)]
    return [shares[i % n_threads][i // n_threads] for i in range(len(tasks))]


def _ranges(length: int, n_sequences: int) -> list[tuple[int, int]]:
    """Ranges of equal length: as few to a sequence as keep all threads busy."""
    n_threads = torch.get_num_threads()
    n_ranges = min(n_threads // math.gcd(n_threads, n_sequences), length // SHORTEST_RANGE)
    n_ranges = max(1, n_ranges, -(-length // LONGEST_RANGE))
    return list(pairwise(length * i // n_ranges for i in range(n_ranges + 1)))


def _sequences(x: Float[Tensor, "sequence position feature"], scale: Scale) -> list[_Sequence]:
    integer, unsigned = (torch.int32, np.uint32) if x.dtype == torch.float32 else (torch.int16, np.uint16)
    sequences = [
        _Sequence(
            each.contiguous().view(integer).numpy().view(unsigned),
            FORMATS[x.dtype],
            np.ones(len(each), np.float32),
        )
        for each in x
    ]
    if scale == "token_rms":
        ranges = _ranges(x.shape[1], len(sequences))
        _at_once(
            [
                partial(kernels.token_rms, *each[:2], *each_range, each.divisors)
                for each in sequences
                for each_range in ranges
            ]
        )
    return sequences


def _bracket(sequence: _Sequence) -> UInt32[np.ndarray, " low_and_width=2"]:
    """Bit patterns that most likely hold the median of the magnitudes: the lowest, and how many from there on."""
    n_runs, length = SAMPLE
    sampled = np.empty((n_runs, min(length, sequence.bits.shape[1])), np.uint32)
    kernels.sample(*sequence, sampled)
    # Bit patterns of magnitudes are ordered as the magnitudes are; what is not finite comes last.
    magnitudes = np.sort(sampled, axis=None)
    n = int(np.searchsorted(magnitudes, kernels.INFINITY))
    if n == 0:
        return np.array([1, 0], np.uint32)
    middle, error = (n - 1) // 2, math.ceil(STANDARD_ERRORS * 0.5 * math.sqrt(n))
    low = max(1, int(magnitudes[max(0, middle - error)]))
    high = int(magnitudes[min(n - 1, middle + error)])
    return np.array([low, max(0, high - low + 1)], np.uint32)


def _median(sequence: _Sequence, parts: Sequence[_Part], n_finite: int) -> np.float32:
    """The lower median of the magnitudes: from inside the bracket or, where that missed, from all."""
    if n_finite == 0:
        return np.float32(0)
    rank = (n_finite - 1) // 2
    inside = np.concatenate([part.inside for part in parts])
    rank_inside = rank - sum(part.n_below for part in parts)
    if 0 <= rank_inside < len(inside) and all(part.n_below >= 0 for part in parts):
        return np.partition(inside, rank_inside)[rank_inside].view(np.float32)
    return _median_by_bisection(sequence, rank)


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


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site."""
    n_sequences, n_positions, n_features = x.shape
    sequences = _sequences(x, scale)
    brackets = _at_once([partial(_bracket, sequence) for sequence in sequences])
    unions = np.empty((n_sequences, 0, n_features), np.uint8) if union is None else union.numpy()
    out = _outputs(n_sequences, n_features)
    ranges = _ranges(n_features, n_sequences)
    results = _at_once(
        [
            partial(
                kernels.tally_features, *sequence, unions[s], ladder.floor_rung, brackets[s], *each_range, *out.of(s)
            )
            for s, sequence in enumerate(sequences)
            for each_range in ranges
        ]
    )
    parts = [_Part(*result) for result in results]
    n_finite = n_positions * n_features - out.n_nonfinite.sum(axis=1)
    medians = [
        _median(sequence, parts[s * len(ranges) : (s + 1) * len(ranges)], int(n_finite[s]))
        for s, sequence in enumerate(sequences)
    ]
    tally = Tally(
        first=out.peaks[:, 0].view(np.float32),
        later=out.peaks[:, 1].view(np.float32),
        later_position=out.peaks[:, 2].astype(np.uint16),
        peak_value=out.peaks[:, 3].view(np.float32),
        top_step=out.top_step,
        n_positions=np.concatenate([part.n_positions for part in parts]),
        sums=out.sums,
        n_nonfinite=out.n_nonfinite,
        median=np.array(medians),
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
    counts = _at_once([partial(kernels.tally_union, sequence, top[s], later[s]) for s, sequence in enumerate(steps)])
    return union_sketch(top, steps[:, 0], later, np.concatenate(counts))
