"""The sketch on the CPU, compiled: each tile of activations is read once and counted while it is in the first cache."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numba import njit
from torch import Tensor

from outlier_moe.ladder import FLOAT32_SHIFT, N_EDGES, Ladder
from outlier_moe.recording.tally import SiteSketch, Tally, UnionSketch, site_sketch, union_sketch

if TYPE_CHECKING:
    from outlier_moe.recording.sketch import Scale

FLOAT32, BFLOAT16, FLOAT16 = 0, 1, 2
FORMATS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}

ROWS = 16
LANES = 64
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)

compiled = njit(nogil=True, cache=True, error_model="numpy")


@compiled
def _load(bits, kind, divisor, p0, rows, f0, lanes, tile):
    """Bring a tile in as float32 bit patterns; whether one of them is not finite."""
    values = tile.view(np.float32)
    top = np.uint32(0)
    for r in range(rows):
        if kind == FLOAT32:
            for f in range(lanes):
                tile[r, f] = bits[p0 + r, f0 + f]
        elif kind == BFLOAT16:
            for f in range(lanes):
                tile[r, f] = np.uint32(bits[p0 + r, f0 + f]) << np.uint32(16)
        else:
            for f in range(lanes):
                values[r, f] = _from_float16(np.uint32(bits[p0 + r, f0 + f]))
        if divisor.size:
            for f in range(lanes):
                values[r, f] = values[r, f] / divisor[p0 + r]
        for f in range(lanes):
            top = max(top, tile[r, f] & MAGNITUDE)
    return top >= INFINITY


@compiled
def _from_float16(half):
    magnitude = np.float32(half & np.uint32(0x3FF)) * np.float32(2.0**-24)
    exponent = (half >> np.uint32(10)) & np.uint32(0x1F)
    if exponent == 31:
        magnitude = np.float32(np.inf) if half & np.uint32(0x3FF) == 0 else np.float32(np.nan)
    elif exponent > 0:
        mantissa = np.float32(np.uint32(1024) + (half & np.uint32(0x3FF)))
        magnitude = mantissa * np.float32(2.0 ** (np.float64(exponent) - 25.0))
    return -magnitude if half & np.uint32(0x8000) else magnitude


@compiled
def _drop_nonfinite(tile, rows, lanes, n_nonfinite):
    for r in range(rows):
        for f in range(lanes):
            if tile[r, f] & MAGNITUDE >= INFINITY:
                tile[r, f] = 0
                n_nonfinite[f] += 1


@compiled
def _step(tile, rows, lanes, floor_rung, steps):
    for r in range(rows):
        for f in range(lanes):
            rung = np.int32((tile[r, f] & MAGNITUDE) >> np.uint32(FLOAT32_SHIFT)) - np.int32(floor_rung - 1)
            steps[r, f] = min(max(rung, np.int32(0)), np.int32(N_EDGES))


@compiled
def _raise_peaks(tile, p0, rows, lanes, best, where):
    for r in range(rows):
        for f in range(lanes):
            magnitude = tile[r, f] & MAGNITUDE
            higher = magnitude > best[f]
            best[f] = magnitude if higher else best[f]
            where[f] = np.uint32(p0 + r) if higher else where[f]


@compiled
def _add_powers(tile, rows, lanes, sums):
    values = tile.view(np.float32)
    for r in range(rows):
        for f in range(lanes):
            x = np.float64(values[r, f])
            square = x * x
            sums[0, f] += x
            sums[1, f] += square
            sums[2, f] += square * x
            sums[3, f] += square * square


@compiled
def _count(steps, rows, lanes, histogram):
    for r in range(rows):
        top = np.uint8(0)
        for f in range(lanes):
            top = max(top, steps[r, f])
        if top > 0:
            for f in range(lanes):
                histogram[f, steps[r, f]] += np.uint16(1)


@compiled
def _write_counts(histogram, lanes, n_positions, n_written):
    """Append each feature's list: from its top step down, the counts add up."""
    for f in range(lanes):
        top = N_EDGES
        while top > 0 and histogram[f, top] == 0:
            top -= 1
        total = np.uint16(0)
        for step in range(top, 0, -1):
            total += histogram[f, step]
            n_positions[n_written + step - 1] = total
        n_written += top
    return n_written


@compiled
def _tally_features(bits, kind, divisor, union, floor_rung, begin, end, out):
    """Count features begin to end of one sequence; returns the counts, list after list."""
    first, later, later_position, peak_value, sums, n_nonfinite = out
    n_rows = bits.shape[0]
    n_positions = np.empty((end - begin) * N_EDGES, np.uint16)
    n_written = 0
    tile = np.zeros((ROWS, LANES), np.uint32)
    steps = np.zeros((ROWS, LANES), np.uint8)
    histogram = np.empty((LANES, 256), np.uint16)
    best = np.empty(LANES, np.uint32)
    where = np.empty(LANES, np.uint32)
    at_first = np.empty(LANES, np.uint32)
    for f0 in range(begin, end, LANES):
        lanes = min(LANES, end - f0)
        histogram[:] = 0
        best[:] = 0
        where[:] = 0
        for p0 in range(0, n_rows, ROWS):
            rows = min(ROWS, n_rows - p0)
            if _load(bits, kind, divisor, p0, rows, f0, lanes, tile):
                _drop_nonfinite(tile, rows, lanes, n_nonfinite[f0:])
            _step(tile, rows, lanes, floor_rung, steps)
            if union.size:
                for r in range(rows):
                    for f in range(lanes):
                        union[p0 + r, f0 + f] = max(union[p0 + r, f0 + f], steps[r, f])
            if p0 == 0:
                at_first[:] = tile[0]
                tile[0] = 0
                _raise_peaks(tile, p0, rows, lanes, best, where)
                tile[0] = at_first
            else:
                _raise_peaks(tile, p0, rows, lanes, best, where)
            _add_powers(tile, rows, lanes, sums[:, f0:])
            _count(steps, rows, lanes, histogram)
        n_written = _write_counts(histogram, lanes, n_positions, n_written)
        first[f0 : f0 + lanes] = (at_first & MAGNITUDE).view(np.float32)[:lanes]
        later[f0 : f0 + lanes] = best.view(np.float32)[:lanes]
        later_position[f0 : f0 + lanes] = where[:lanes]
        for f in range(lanes):
            p = 0 if (at_first[f] & MAGNITUDE) >= best[f] else where[f]
            _load(bits, kind, divisor, p, 1, f0 + f, 1, tile)
            peak_value[f0 + f] = tile.view(np.float32)[0, 0]
    return n_positions[:n_written].copy()


@compiled
def _token_divisors(bits, kind):
    """Each token's RMS, or infinity where it is zero, so that the token's values stay zero."""
    n_rows, n_features = bits.shape
    half = 1
    while 2 * half < n_features:
        half *= 2
    row = np.empty((1, n_features), np.uint32)
    squares = np.zeros(2 * half)
    divisors = np.empty(n_rows, np.float32)
    none = np.empty(0, np.float32)
    dropped = np.zeros(n_features, np.int64)
    for p in range(n_rows):
        dropped[:] = 0
        if _load(bits, kind, none, p, 1, 0, n_features, row):
            _drop_nonfinite(row, 1, n_features, dropped)
        values = row.view(np.float32)
        for f in range(n_features):
            squares[f] = np.float64(values[0, f]) ** 2
        squares[n_features:] = 0
        span = half
        while span > 0:
            for f in range(span):
                squares[f] += squares[f + span]
            span //= 2
        n_finite = n_features - dropped.sum()
        rms = np.float32(math.sqrt(squares[0] / n_finite)) if n_finite else np.float32(0)
        divisors[p] = rms if rms > 0 else np.float32(np.inf)
    return divisors


@compiled
def _median(bits, kind, divisor, n_nonfinite):
    """The lower median of the finite magnitudes, by its bit pattern's digits from the top."""
    n_rows, n_features = bits.shape
    rank = (n_rows * n_features - n_nonfinite - 1) // 2
    tile = np.empty((1, n_features), np.uint32)
    prefix, known = np.uint32(0), 32
    for digits in (12, 10, 10):
        shift = np.uint32(known - digits)
        counts = np.zeros(1 << digits, np.int64)
        for p in range(n_rows):
            _load(bits, kind, divisor, p, 1, 0, n_features, tile)
            for f in range(n_features):
                magnitude = tile[0, f] & MAGNITUDE
                if np.uint64(magnitude) >> np.uint64(known) == np.uint64(prefix):
                    counts[(magnitude >> shift) & np.uint32((1 << digits) - 1)] += 1
        digit = 0
        while rank >= counts[digit]:
            rank -= counts[digit]
            digit += 1
        prefix = (prefix << np.uint32(digits)) | np.uint32(digit)
        known -= digits
    return prefix


@compiled
def _central_sums(bits, kind, divisor, centre):
    """Sums of the first four powers of the finite values' distance from a centre."""
    n_rows, n_features = bits.shape
    tile = np.empty((1, n_features), np.uint32)
    values = tile.view(np.float32)
    sums = np.zeros((4, n_features))
    for p in range(n_rows):
        _load(bits, kind, divisor, p, 1, 0, n_features, tile)
        for f in range(n_features):
            if tile[0, f] & MAGNITUDE < INFINITY:
                d = np.float64(values[0, f]) - np.float64(centre)
                sums[0, f] += d
                sums[1, f] += d * d
                sums[2, f] += d * d * d
                sums[3, f] += d * d * d * d
    return sums


@compiled
def _tally_union(union):
    n_rows, n_features = union.shape
    n_positions = np.empty(n_features * N_EDGES, np.uint16)
    n_written = 0
    later = np.zeros(n_features, np.uint8)
    histogram = np.empty((LANES, 256), np.uint16)
    for f0 in range(0, n_features, LANES):
        lanes = min(LANES, n_features - f0)
        histogram[:] = 0
        for p in range(n_rows):
            _count(union[p : p + 1, f0 : f0 + lanes], 1, lanes, histogram)
            if p > 0:
                for f in range(lanes):
                    later[f0 + f] = max(later[f0 + f], union[p, f0 + f])
        n_written = _write_counts(histogram, lanes, n_positions, n_written)
    return later, n_positions[:n_written].copy()


def _bits(sequence: Float[Tensor, "position feature"]) -> np.ndarray:
    integer = torch.int32 if sequence.dtype == torch.float32 else torch.int16
    signed = sequence.contiguous().view(integer).numpy()
    return signed.view(np.uint32 if integer == torch.int32 else np.uint16)


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site, counted on torch's number of threads."""
    kind = FORMATS[x.dtype]
    n_sequences, n_rows, n_features = x.shape
    shape = (n_sequences, n_features)
    later_position = np.zeros(shape, np.uint16)
    first, later, peak_value = (np.zeros(shape, np.float32) for _ in range(3))
    sums, n_nonfinite = np.zeros((n_sequences, 4, n_features)), np.zeros(shape, np.int64)
    divisors, medians, counts = [], np.zeros(n_sequences, np.float32), []
    for s in range(n_sequences):
        bits = _bits(x[s])
        divisor = _token_divisors(bits, kind) if scale == "token_rms" else np.empty(0, np.float32)
        divisors.append(divisor)
        seen = np.zeros((0, 0), np.uint8) if union is None else union[s].numpy()
        out = (first[s], later[s], later_position[s], peak_value[s], sums[s], n_nonfinite[s])
        counts.append(_tally_features(bits, kind, divisor, seen, ladder.floor_rung, 0, n_features, out))
        dropped = int(n_nonfinite[s].sum())
        if dropped < bits.size:
            medians[s : s + 1].view(np.uint32)[0] = _median(bits, kind, divisor, dropped)
    tally = Tally(first, later, later_position, peak_value, np.concatenate(counts), sums, n_nonfinite, medians)
    return site_sketch(
        tally,
        ladder=ladder,
        n_positions=n_rows,
        central_sums=lambda s, centre: _central_sums(_bits(x[s]), kind, divisors[s], centre).sum(axis=1),
    )


def sketch_union(union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
    """The counts over a union."""
    steps = union.numpy()
    tallies = [_tally_union(np.ascontiguousarray(sequence)) for sequence in steps]
    return union_sketch(
        np.ascontiguousarray(steps[:, 0]),
        np.stack([later for later, _ in tallies]),
        np.concatenate([counts for _, counts in tallies]),
    )
