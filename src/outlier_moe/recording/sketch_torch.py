"""The sketch on an accelerator, of torch operations: nothing comes to the host before a whole chunk is counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int32, Int64, Shaped, UInt8, UInt16
from torch import Tensor

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES, Ladder
from outlier_moe.recording.tally import Scale, SiteSketch, Tally, UnionSketch, site_sketch, union_sketch

# Elements converted at a time: enough to fill an accelerator, few enough for their temporaries to stay below 64 MiB.
BLOCK = 1 << 20
# The 31 bits of a magnitude in digits from the top: bits below the digit, bits of the digit.
DIGITS = ((20, 11), (10, 10), (0, 10))


class _SequenceTally(NamedTuple):
    """The tally of one sequence, on the device."""

    first: Float32[Tensor, " feature"]
    """x at position 0; 0 where it is not finite."""
    later: Float32[Tensor, " feature"]
    """x where |x| first peaks over the positions from 1."""
    later_position: Int64[Tensor, " feature"]
    """That position; 0 where `later` is 0."""
    histogram: Int32[Tensor, "step=256 feature"]
    """Positions on each step."""
    sums: Float64[Tensor, "power=4 feature"]
    """Sums of x, x**2, x**3, x**4."""
    n_nonfinite: Int64[Tensor, " feature"]
    """Positions left out."""
    median: Float32[Tensor, ""]
    """The lower median of |x|."""


class _Rows:
    """The finite values of one sequence in float32, a block of positions at a time."""

    def __init__(self, sequence: Float[Tensor, "position feature"], scale: Scale) -> None:
        self.sequence = sequence
        self.scale = scale
        self.n_rows, self.n_features = sequence.shape

    def __iter__(self) -> Iterator[tuple[int, Float32[Tensor, "row feature"], torch.Tensor]]:
        """First position, values with 0 for what is not finite, and which are finite, of each block."""
        rows = max(1, BLOCK // self.n_features)
        for p0 in range(0, self.n_rows, rows):
            x = self.sequence[p0 : p0 + rows].float()
            if self.scale == "token_rms":
                x = x / _token_divisors(x)[:, None]
            finite = x.isfinite()
            yield p0, x.where(finite, 0), finite


def _token_divisors(x: Float32[Tensor, "row feature"]) -> Float32[Tensor, " row"]:
    """Each token's RMS, or infinity where it is zero, so that the token's values stay zero.

    The squares are added as a balanced tree over the features padded to a power of two, so that the sum is the same on
    every device to the last bit.
    """
    finite = x.isfinite()
    squares = x.where(finite, 0).double().square()
    span = 1 << max(0, (x.shape[1] - 1).bit_length())
    squares = torch.nn.functional.pad(squares, (0, span - x.shape[1]))
    while span > 1:
        span //= 2
        squares = squares[:, :span] + squares[:, span:]
    rms = (squares[:, 0] / finite.sum(dim=1).clamp(min=1)).sqrt().float()
    return rms.where(rms > 0, torch.inf)


def _magnitude_bits(x: Float32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    return x.view(torch.int32) & 0x7FFFFFFF


def _count_steps(histogram: Int32[Tensor, "step=256 feature"], steps: Shaped[Tensor, "row feature"]) -> None:
    n_features = steps.shape[1]
    index = steps.long() * n_features + torch.arange(n_features, device=steps.device)
    histogram.view(-1).scatter_add_(0, index.flatten(), torch.ones_like(index, dtype=torch.int32).flatten())


def _powers(x: Float32[Tensor, "row feature"]) -> Float64[Tensor, "power=4 feature"]:
    values = x.double()
    squares = values.square()
    return torch.stack([part.sum(dim=0) for part in (values, squares, squares * values, squares.square())])


def _tally_sequence(rows: _Rows, ladder: Ladder, union: UInt8[Tensor, "position feature"] | None) -> _SequenceTally:
    sequence, n_features = rows.sequence, rows.n_features
    first, later = (torch.zeros(n_features, device=sequence.device) for _ in range(2))
    later_position, n_nonfinite = (sequence.new_zeros(n_features, dtype=torch.int64) for _ in range(2))
    histogram = sequence.new_zeros((N_EDGES + 1, n_features), dtype=torch.int32)
    sums = sequence.new_zeros((4, n_features), dtype=torch.float64)
    for p0, x, finite in rows:
        bits = _magnitude_bits(x)
        steps = ((bits >> FLOAT32_SHIFT) - (ladder.floor_rung - 1)).clamp(0, N_EDGES)
        if union is not None:
            seen = union[p0 : p0 + len(x)]
            torch.maximum(seen, steps.to(torch.uint8), out=seen)
        _count_steps(histogram, steps)
        sums += _powers(x)
        n_nonfinite += (~finite).sum(dim=0)
        if p0 == 0:
            first = x[0].clone()
            bits[0] = 0
        # Of equal ones, max gives the first.
        peak, row = bits.max(dim=0)
        higher = peak > _magnitude_bits(later)
        later = torch.where(higher, x.gather(0, row[None])[0], later)
        later_position = torch.where(higher, p0 + row, later_position)
    median = _median(rows, n_nonfinite.sum())
    return _SequenceTally(first, later, later_position, histogram, sums, n_nonfinite, median)


def _median(rows: _Rows, n_nonfinite: Int64[Tensor, ""]) -> Float32[Tensor, ""]:
    """The lower median of the finite magnitudes: its bit pattern's digits, one after the other from the top."""
    n_values = rows.sequence.numel()
    rank = ((n_values - n_nonfinite - 1) // 2).clamp(min=0)
    prefix = torch.zeros_like(rank, dtype=torch.int32)
    for below, n_bits in DIGITS:
        counts = torch.zeros(1 << n_bits, dtype=torch.int64, device=rank.device)
        for _, x, finite in rows:
            bits = _magnitude_bits(x)
            digits = ((bits >> below) & (len(counts) - 1)).float()
            # Nothing is counted beside the range of a histogram. Its own counts, in float32, are exact for one block.
            candidate = finite & (bits >> (below + n_bits) == prefix)
            counts += torch.histc(digits.where(candidate, -1), len(counts), 0, len(counts)).long()
        total = counts.cumsum(dim=0)
        digit = (total <= rank).sum().clamp(max=len(counts) - 1)
        rank = rank - (total[digit] - counts[digit])
        prefix = (prefix << n_bits) | digit.int()
    return prefix.where(n_nonfinite < n_values, 0).view(torch.float32)


def _at_least(
    histogram: Int32[np.ndarray, "sequence step=256 feature"], top: UInt8[np.ndarray, "sequence feature"]
) -> UInt16[np.ndarray, " value"]:
    """Positions at or above each step from 1 to the feature's top one, list after list."""
    counts = np.flip(np.cumsum(np.flip(histogram, axis=1), axis=1), axis=1).swapaxes(1, 2)[:, :, 1:]
    return counts[np.arange(N_EDGES) < top[:, :, None]].astype(np.uint16)


def _top_step(histogram: Int32[np.ndarray, "sequence step=256 feature"]) -> UInt8[np.ndarray, "sequence feature"]:
    step = np.arange(N_EDGES + 1, dtype=np.uint8)[:, None]
    return np.max((histogram > 0) * step, axis=1)


def _to_host(tallies: list[_SequenceTally]) -> Tally:
    columns = zip(*tallies, strict=True)
    first, later, position, histogram, sums, n_nonfinite, median = (torch.stack(part).cpu().numpy() for part in columns)
    top_step = _top_step(histogram)
    return Tally(
        first=np.abs(first),
        later=np.abs(later),
        later_position=position.astype(np.uint16),
        peak_value=np.where(np.abs(first) >= np.abs(later), first, later),
        top_step=top_step,
        n_positions=_at_least(histogram, top_step),
        sums=sums,
        n_nonfinite=n_nonfinite,
        median=median,
    )


def _central_sums(rows: _Rows, centre: np.float32) -> Float64[np.ndarray, " power=4"]:
    """Sums of the first four powers of the finite values' distance from a centre."""
    sums = torch.zeros(4, dtype=torch.float64, device=rows.sequence.device)
    for _, x, finite in rows:
        distance = (x.double() - float(centre)).where(finite, 0)
        sums += torch.stack([distance.pow(power).sum() for power in (1, 2, 3, 4)])
    return sums.cpu().numpy()


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site, counted where the activations are."""
    sequences = [_Rows(sequence, scale) for sequence in x]
    unions = [None] * len(sequences) if union is None else list(union)
    tallies = [_tally_sequence(rows, ladder, seen) for rows, seen in zip(sequences, unions, strict=True)]
    return site_sketch(
        _to_host(tallies),
        n_positions=x.shape[1],
        central_sums=lambda s, centre: _central_sums(sequences[s], centre),
    )


def sketch_union(union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
    """The counts over a union."""
    histograms = []
    for steps in union:
        histogram = torch.zeros((N_EDGES + 1, steps.shape[1]), dtype=torch.int32, device=union.device)
        for block in steps.split(max(1, BLOCK // steps.shape[1])):
            _count_steps(histogram, block)
        histograms.append(histogram)
    histogram = torch.stack(histograms).cpu().numpy()
    first = union[:, 0].cpu().numpy()
    later = histogram.copy()
    np.put_along_axis(later, first[:, None], np.take_along_axis(later, first[:, None], 1) - 1, 1)
    top = _top_step(histogram)
    return union_sketch(top, first, _top_step(later), _at_least(histogram, top))
