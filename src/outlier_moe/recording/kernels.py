"""Compiled loops over one sequence's activations: what the sketch on the CPU is made of.

A tile of activations (a few positions of a block of features) is brought in as float32 bit patterns, small enough to
stay in the processor's cache, and one loop after the other runs over it there. A loop that does one thing, on rows that
were sliced off before and in numbers that are kept to 32 bits, is one that the compiler turns into vector instructions.
Every sum goes over positions in one fixed order, each feature for itself, so that no result depends on how the features
are divided among threads. The threads are numba's, by OpenMP as torch's are: threads of our own would wait for a
processor while those of torch, between two of its operations, keep it busy waiting. All of it is in one file because
the cache of compiled functions looks at no other.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped, UInt8, UInt16, UInt32
from numba import njit, prange

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES

Bits = Shaped[np.ndarray, "position feature"]
"""Activations as they are in memory: uint32 for float32, uint16 for the two formats of 16 bits."""
Divisors = Float32[np.ndarray, " position"]
"""What each token's activations are divided by."""
Union = UInt8[np.ndarray, "position feature"]
Tile = UInt32[np.ndarray, "row lane"]
Elements = UInt32[np.ndarray, " element"]
"""A tile, row after row."""
Flags = UInt8[np.ndarray, " element"]
"""A byte for each of a tile's elements: its step, or whether it is of interest."""
Groups = UInt32[np.ndarray, " group"]
Histogram = UInt16[np.ndarray, "step lane"]

FLOAT32, BFLOAT16, FLOAT16 = range(3)

ROWS = 32
# A tile's rows are filled up with zeros to a multiple of the lanes that one vector instruction takes.
LANE_MULTIPLE = 16
GROUP = 8

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
INFINITE_RUNG = 0x7F800000 >> FLOAT32_SHIFT


def compiled(function: Callable) -> Callable:
    """Compile a function for loops that hold no lock of the interpreter."""
    # What a checker of types has wrapped around the function cannot be compiled.
    return njit(nogil=True, cache=True, error_model="numpy")(inspect.unwrap(function))


def compiled_for_threads(function: Callable) -> Callable:
    """The same, its `prange` loops shared out among numba's threads."""
    return njit(nogil=True, cache=True, error_model="numpy", parallel=True)(inspect.unwrap(function))


@compiled
def _read(bits: Bits, kind: int, divisors: Divisors, p0: int, f0: int, f1: int, tile: Tile) -> None:
    """Fill a tile with divided activations, from position p0 and of features f0 to f1, rows left over with zeros."""
    values = tile.view(np.float32)
    n_rows, n_lanes = min(len(tile), len(bits) - p0), f1 - f0
    tile[n_rows:] = 0
    for r in range(n_rows):
        row, out = bits[p0 + r, f0:f1], tile[r, :n_lanes]
        if kind == FLOAT32:
            for f in range(n_lanes):
                out[f] = row[f]
        elif kind == BFLOAT16:
            for f in range(n_lanes):
                out[f] = np.uint32(row[f]) << np.uint32(16)
        else:
            _from_float16(row, out)
    for r in range(n_rows):
        divided, divisor = values[r, :n_lanes], divisors[p0 + r]
        if divisor != 1:
            for f in range(n_lanes):
                divided[f] = divided[f] / divisor


@compiled
def _from_float16(row: Shaped[np.ndarray, " lane"], out: UInt32[np.ndarray, " lane"]) -> None:
    # No arithmetic on denormals: a processor told to flush them to zero would lose those of float16. They are made as
    # 2**-14 more than they are.
    values = out.view(np.float32)
    for f in range(len(row)):
        half = np.uint32(row[f])
        exponent = np.uint32(half & np.uint32(0x7C00))
        offset = np.uint32(224 << 23) if exponent == 0x7C00 else np.uint32(112 << 23)
        offset = np.uint32(113 << 23) if exponent == 0 else offset
        out[f] = np.uint32(np.uint32(half & np.uint32(0x7FFF)) << np.uint32(13)) + offset
    for f in range(len(row)):
        values[f] -= np.float32(2.0**-14) if np.uint32(row[f] & np.uint32(0x7C00)) == 0 else np.float32(0)
    for f in range(len(row)):
        out[f] |= np.uint32(np.uint32(row[f]) & np.uint32(0x8000)) << np.uint32(16)


@compiled
def _clear_nonfinite(tile: Tile, n_nonfinite: Int64[np.ndarray, " feature"]) -> None:
    for r in range(len(tile)):
        for f in range(len(n_nonfinite)):
            if tile[r, f] & MAGNITUDE >= INFINITY:
                tile[r, f] = 0
                n_nonfinite[f] += 1


@compiled
def _to_steps(tile: Elements, floor_rung: int, steps: Flags) -> tuple[np.int64, np.int64]:
    """Write each element's step; returns the top rung (a float's sign-less bits above the 20 lowest) and its step."""
    below = np.int32(floor_rung - 1)
    top = np.int32(0)
    for i in range(len(tile)):
        rung = np.int32(np.uint32(tile[i] & MAGNITUDE) >> np.uint32(FLOAT32_SHIFT))
        steps[i] = np.uint8(min(max(np.int32(rung - below), np.int32(0)), np.int32(N_EDGES)))
        top = max(top, rung)
    return np.int64(top), np.int64(min(max(top - below, 0), N_EDGES))


@compiled
def _raise_union(union: Union, p0: int, f0: int, f1: int, steps: UInt8[np.ndarray, "row lane"]) -> None:
    for r in range(min(len(steps), len(union) - p0)):
        seen, row = union[p0 + r, f0:f1], steps[r]
        for f in range(f1 - f0):
            seen[f] = max(seen[f], row[f])


@compiled
def _list_groups(flags: Flags, groups: Groups) -> np.uint64:
    """List the groups of eight elements with a flag that is not zero; returns how many there are.

    Going through a list costs no mispredicted branches, as asking each flag does.
    """
    words = flags.view(np.uint64)
    n = np.uint64(0)
    for g in range(len(words)):
        groups[n] = np.uint32(g)
        n += np.uint64(words[g] != 0)
    return n


@compiled
def _count(steps: Flags, histogram: Histogram, groups: Groups, lanes: Groups) -> None:
    """Count each feature's rows on each step; of step 0, which nobody asks for, some."""
    for g in range(_list_groups(steps, groups)):
        i, f = np.uint64(GROUP * groups[g]), np.uint64(lanes[groups[g]])
        for j in range(GROUP):
            histogram[steps[i + np.uint64(j)], f + np.uint64(j)] += np.uint16(1)


@compiled
def whole_lanes(n_features: int) -> int:
    """The length of a tile's rows for a number of features."""
    return (n_features + LANE_MULTIPLE - 1) // LANE_MULTIPLE * LANE_MULTIPLE


@compiled
def _histogram(n_features: int) -> Histogram:
    return np.zeros((N_EDGES + 1, whole_lanes(n_features)), np.uint16)


@compiled
def _group_lanes(n_lanes: int) -> Groups:
    """The first lane of each group of a tile."""
    return (np.arange(0, ROWS * n_lanes, GROUP) % n_lanes).astype(np.uint32)


@compiled
def _collect(
    tile: Elements,
    low: np.uint32,
    width: np.uint32,
    flags: Flags,
    groups: Groups,
    inside: UInt32[np.ndarray, " room"],
    n_inside: np.uint64,
) -> tuple[np.uint64, np.int64]:
    """Append the magnitudes inside a bracket; returns how many there are by now, and how many lie below it here."""
    n_below = np.uint32(0)
    for i in range(len(tile)):
        magnitude = np.uint32(tile[i] & MAGNITUDE)
        n_below = np.uint32(n_below + np.uint32(magnitude < low))
        flags[i] = np.uint8(np.uint32(magnitude - low) < width)
    for g in range(_list_groups(flags, groups)):
        i = np.uint64(GROUP * groups[g])
        for j in range(GROUP):
            inside[n_inside] = tile[i + np.uint64(j)] & MAGNITUDE
            n_inside += np.uint64(flags[i + np.uint64(j)])
    return n_inside, np.int64(n_below)


@compiled
def _raise_peaks(
    tile: Tile, p0: int, peak: UInt32[np.ndarray, " feature"], position: UInt32[np.ndarray, " feature"]
) -> None:
    for r in range(0, len(tile), 2):
        row, next_row = tile[r], tile[r + 1]
        here, there = np.uint32(p0 + r), np.uint32(p0 + r + 1)
        for f in range(len(peak)):
            magnitude, next_magnitude = np.uint32(row[f] & MAGNITUDE), np.uint32(next_row[f] & MAGNITUDE)
            where = here if magnitude > peak[f] else position[f]
            top = max(magnitude, peak[f])
            position[f] = there if next_magnitude > top else where
            peak[f] = max(next_magnitude, top)


@compiled
def _take_first_token(tile: Tile, first: UInt32[np.ndarray, " feature"]) -> None:
    """Move the magnitudes at position 0 out of the tile, where the later peaks are looked for."""
    for f in range(len(first)):
        first[f] = tile[0, f] & MAGNITUDE
        tile[0, f] = 0


@compiled
def _add_powers(
    values: Float32[np.ndarray, "row lane"],
    s1: Float64[np.ndarray, " feature"],
    s2: Float64[np.ndarray, " feature"],
    s3: Float64[np.ndarray, " feature"],
    s4: Float64[np.ndarray, " feature"],
) -> None:
    # Four rows at a time: fewer trips to the sums than additions.
    for r in range(0, len(values), 4):
        row_a, row_b, row_c, row_d = values[r], values[r + 1], values[r + 2], values[r + 3]
        for f in range(len(s1)):
            a, b, c, d = np.float64(row_a[f]), np.float64(row_b[f]), np.float64(row_c[f]), np.float64(row_d[f])
            aa, bb, cc, dd = a * a, b * b, c * c, d * d
            s1[f] += (a + b) + (c + d)
            s2[f] += (aa + bb) + (cc + dd)
            s3[f] += (aa * a + bb * b) + (cc * c + dd * d)
            s4[f] += (aa * aa + bb * bb) + (cc * cc + dd * dd)


@compiled
def _lists(
    histogram: Histogram, top_step: UInt8[np.ndarray, " feature"], n_positions: UInt16[np.ndarray, " room"]
) -> int:
    """Fill in each feature's top step and its counts at the edges up to that, feature after feature.

    Returns:
        How many counts there are in all.
    """
    n = 0
    for f in range(len(top_step)):
        top = N_EDGES
        while top > 0 and histogram[top, f] == 0:
            top -= 1
        total = np.uint16(0)
        for step in range(top, 0, -1):
            total += histogram[step, f]
            n_positions[n + step - 1] = total
        top_step[f] = top
        n += top
    return n


@compiled_for_threads
def tally_sequence(
    bits: Bits,
    kind: int,
    divisors: Divisors,
    union: Union,
    floor_rung: int,
    bracket: UInt32[np.ndarray, " low_and_width=2"],
    n_ranges: int,
    peaks: UInt32[np.ndarray, "what=4 feature"],
    top_step: UInt8[np.ndarray, " feature"],
    sums: Float64[np.ndarray, "power=4 feature"],
    n_nonfinite: Int64[np.ndarray, " feature"],
    n_positions: UInt16[np.ndarray, "feature step"],
    inside: UInt32[np.ndarray, "range room"],
    n_found: Int64[np.ndarray, "range what=3"],
) -> None:
    """Tally one sequence, its features in ranges of equal length that the threads share out.

    Args:
        bits: The activations.
        kind: Their format.
        divisors: What each token's activations are divided by.
        union: Raised in place to these activations' steps; without positions if none is kept.
        floor_rung: The ladder's.
        bracket: The bit patterns to collect for the median: the lowest, above 0, and how many from there on.
        n_ranges: Into how many ranges the features are divided.
        peaks: Zeros; filled with the bits of |x| at position 0, of the largest later |x|, its position, and the bits of
            x where |x| peaks.
        top_step: Zeros; filled with the largest step, which is how many counts a feature has.
        sums: Zeros; filled with the sums of x, x**2, x**3, x**4.
        n_nonfinite: Zeros; filled with the number of values left out.
        n_positions: Room; each range's counts at the edges, feature after feature, come from its first row on.
        inside: Room; filled with each range's magnitudes inside the bracket.
        n_found: Filled with each range's number of counts, of magnitudes inside the bracket, and of those below it, or
            -1 if those inside were too many to be kept.
    """
    n_features = bits.shape[1]
    counts = n_positions.reshape(n_positions.size)
    for i in prange(n_ranges):
        f0, f1 = n_features * i // n_ranges, n_features * (i + 1) // n_ranges
        n_found[i, 0], n_found[i, 1], n_found[i, 2] = _tally_features(
            bits,
            kind,
            divisors,
            union,
            floor_rung,
            bracket,
            f0,
            f1,
            peaks,
            top_step,
            sums,
            n_nonfinite,
            counts[f0 * N_EDGES : f1 * N_EDGES],
            inside[i],
        )


@compiled
def _tally_features(
    bits: Bits,
    kind: int,
    divisors: Divisors,
    union: Union,
    floor_rung: int,
    bracket: UInt32[np.ndarray, " low_and_width=2"],
    f0: int,
    f1: int,
    peaks: UInt32[np.ndarray, "what=4 feature"],
    top_step: UInt8[np.ndarray, " feature"],
    sums: Float64[np.ndarray, "power=4 feature"],
    n_nonfinite: Int64[np.ndarray, " feature"],
    n_positions: UInt16[np.ndarray, " count"],
    inside: UInt32[np.ndarray, " room"],
) -> tuple[int, int, int]:
    """Tally features f0 to f1 of one sequence, one tile of positions after the other."""
    histogram = _histogram(f1 - f0)
    tile = np.zeros((ROWS, histogram.shape[1]), np.uint32)
    steps, flags = np.empty(tile.shape, np.uint8), np.empty(tile.size, np.uint8)
    elements, element_steps = tile.reshape(tile.size), steps.reshape(steps.size)
    lanes = _group_lanes(tile.shape[1])
    groups = np.empty(len(lanes), np.uint32)
    n_inside, n_below = np.uint64(0), 0
    room = np.uint64(len(inside) - tile.size)
    for p0 in range(0, len(bits), ROWS):
        _read(bits, kind, divisors, p0, f0, f1, tile)
        top_rung, tile_step = _to_steps(elements, floor_rung, element_steps)
        if top_rung >= INFINITE_RUNG:
            _clear_nonfinite(tile, n_nonfinite[f0:f1])
            top_rung, tile_step = _to_steps(elements, floor_rung, element_steps)
        if tile_step > 0:
            _raise_union(union, p0, f0, f1, steps)
            _count(element_steps, histogram, groups, lanes)
        _add_powers(tile.view(np.float32), sums[0, f0:f1], sums[1, f0:f1], sums[2, f0:f1], sums[3, f0:f1])
        if n_inside <= room:
            n_inside, n_more = _collect(elements, bracket[0], bracket[1], flags, groups, inside, n_inside)
            n_below += n_more
        if p0 == 0:
            _take_first_token(tile, peaks[0, f0:f1])
        _raise_peaks(tile, p0, peaks[1, f0:f1], peaks[2, f0:f1])
    _look_up_values(bits, kind, f0, f1, peaks)
    # The zeros that fill the tiles up, or stand for what is not finite, were taken for elements below the bracket.
    n_read = (len(bits) + ROWS - 1) // ROWS * tile.size
    n_below -= n_read - len(bits) * (f1 - f0) + n_nonfinite[f0:f1].sum()
    n_counts = _lists(histogram, top_step[f0:f1], n_positions)
    return n_counts, int(n_inside), int(n_below) if n_inside <= room else -1


@compiled
def _look_up_values(bits: Bits, kind: int, f0: int, f1: int, peaks: UInt32[np.ndarray, "what=4 feature"]) -> None:
    for f in range(f0, f1):
        position = np.uint32(0) if peaks[0, f] >= peaks[1, f] else peaks[2, f]
        sign = np.uint32(bits[position, f]) >> np.uint32(31 if kind == FLOAT32 else 15)
        peaks[3, f] = max(peaks[0, f], peaks[1, f]) | sign << np.uint32(31)


@compiled_for_threads
def token_rms(bits: Bits, kind: int, n_ranges: int, rms: Divisors) -> None:
    """Write each token's RMS, or infinity where it is zero, so that what it divides stays zero; in ranges of tokens."""
    n_positions = len(bits)
    for i in prange(n_ranges):
        _token_rms(bits, kind, n_positions * i // n_ranges, n_positions * (i + 1) // n_ranges, rms)


@compiled
def _token_rms(bits: Bits, kind: int, begin: int, end: int, rms: Divisors) -> None:
    """Write the RMS of the tokens from `begin` to `end`.

    The squares are added as a balanced tree over the features padded to a power of two: every implementation can do
    the same additions in the same order, and its sums are the same to the last bit.
    """
    n_features, half = bits.shape[1], 64
    while 2 * half < n_features:
        half *= 2
    tile, ones = np.zeros((1, 2 * half), np.uint32), np.ones(len(bits), np.float32)
    lower, upper = tile[0, :half].view(np.float32), tile[0, half:].view(np.float32)
    sums, n_nonfinite = np.zeros(half), np.zeros(2 * half, np.int64)
    for p in range(begin, end):
        _read(bits, kind, ones, p, 0, n_features, tile)
        n_finite = n_features
        if _top_rung(tile[0]) >= INFINITE_RUNG:
            n_nonfinite[:] = 0
            _clear_nonfinite(tile, n_nonfinite)
            n_finite -= n_nonfinite.sum()
        for f in range(half):
            sums[f] = np.float64(lower[f]) * np.float64(lower[f]) + np.float64(upper[f]) * np.float64(upper[f])
        span = half // 2
        while span >= 64:
            rest = sums[span : 2 * span]
            for f in range(span):
                sums[f] += rest[f]
            span //= 2
        root = np.float32(math.sqrt(_sum_of_64(sums) / max(n_finite, 1)))
        rms[p] = root if root > 0 else np.float32(np.inf)


@compiled
def _top_rung(row: UInt32[np.ndarray, " lane"]) -> np.uint32:
    top = np.uint32(0)
    for f in range(len(row)):
        top = max(top, np.uint32(row[f] & MAGNITUDE))
    return top >> np.uint32(FLOAT32_SHIFT)


@compiled
def _sum_of_64(sums: Float64[np.ndarray, " lane"]) -> np.float64:
    # Each loop's length stands in the code, so that the compiler unrolls it.
    for f in range(32):
        sums[f] += sums[f + 32]
    for f in range(16):
        sums[f] += sums[f + 16]
    for f in range(8):
        sums[f] += sums[f + 8]
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]))


@compiled
def sample(bits: Bits, kind: int, divisors: Divisors, runs: UInt32[np.ndarray, "run lane"]) -> None:
    """Fill short runs with magnitudes from positions and features all over a sequence."""
    n_rows, n_features = bits.shape
    n_runs, length = runs.shape
    # The golden ratio's multiples spread the features evenly, however many runs there are.
    stride = int(0.618034 * (n_features - length)) | 1
    for i in range(n_runs):
        f = i * stride % (n_features - length + 1)
        _read(bits, kind, divisors, i * n_rows // n_runs, f, f + length, runs[i : i + 1])
    for i in range(n_runs):
        for f in range(length):
            runs[i, f] &= MAGNITUDE


@compiled
def count_below(bits: Bits, kind: int, divisors: Divisors, magnitude: np.uint32) -> np.int64:
    """How many magnitudes have a lower bit pattern."""
    tile, n = np.empty((1, bits.shape[1]), np.uint32), np.int64(0)
    row = tile[0]
    for p in range(len(bits)):
        _read(bits, kind, divisors, p, 0, len(row), tile)
        n_here = np.uint32(0)
        for f in range(len(row)):
            n_here = np.uint32(n_here + np.uint32(np.uint32(row[f] & MAGNITUDE) < magnitude))
        n += np.int64(n_here)
    return n


@compiled
def central_sums(
    bits: Bits, kind: int, divisors: Divisors, centre: np.float32
) -> Float64[np.ndarray, "power=4 feature"]:
    """Sums over positions of the first four powers of the finite values' distance from a centre."""
    tile = np.empty((1, bits.shape[1]), np.uint32)
    row, values, sums = tile[0], tile[0].view(np.float32), np.zeros((4, bits.shape[1]))
    for p in range(len(bits)):
        _read(bits, kind, divisors, p, 0, len(row), tile)
        for f in range(len(row)):
            if row[f] & MAGNITUDE < INFINITY:
                distance = np.float64(values[f]) - np.float64(centre)
                square = distance * distance
                sums[0, f] += distance
                sums[1, f] += square
                sums[2, f] += square * distance
                sums[3, f] += square * square
    return sums


@compiled
def tally_union(
    union: Union,
    top_step: UInt8[np.ndarray, " feature"],
    later_top_step: UInt8[np.ndarray, " feature"],
) -> UInt16[np.ndarray, " count"]:
    """The counts at the edges, feature after feature; fills in the top steps, of all and of the later positions."""
    n_rows, n_features = union.shape
    histogram = _histogram(n_features)
    n_lanes = histogram.shape[1]
    steps, lanes = np.zeros((ROWS, n_lanes), np.uint8), _group_lanes(n_lanes)
    groups = np.empty(len(lanes), np.uint32)
    for p0 in range(0, n_rows, ROWS):
        n = min(ROWS, n_rows - p0)
        steps[n:] = 0
        for r in range(n):
            row, seen = steps[r, :n_features], union[p0 + r]
            for f in range(n_features):
                row[f] = seen[f]
        for r in range(1 if p0 == 0 else 0, n):
            row = steps[r]
            for f in range(n_features):
                later_top_step[f] = max(later_top_step[f], row[f])
        _count(steps.reshape(steps.size), histogram, groups, lanes)
    n_positions = np.empty(n_features * N_EDGES, np.uint16)
    return n_positions[: _lists(histogram, top_step, n_positions)].copy()
