# Triton's values have no types that a checker knows.
# type: ignore
"""Triton kernels of the sketch: what one launch each counts on a card.

Integers are added and largest values taken in any order, which changes neither. Sums of powers are kept for each part
of the positions and added in a fixed order, so that they depend on the shape alone and not on what ran first.

A site is an array [sequence, position, feature], one value after the other. A program takes `LANES` features of `PART`
positions of one sequence, `ROWS` positions at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES
from outlier_moe.recording.tally import SMALLEST_VARIANCE_SHARE


def kernel(function: Callable) -> Any:
    """Compile a function for cards when it is first launched."""
    # What a checker of types has wrapped around the function cannot be compiled.
    return triton.jit(inspect.unwrap(function))


N_STEPS = N_EDGES + 1
N_BINS = 256

_SHIFT: tl.constexpr = tl.constexpr(FLOAT32_SHIFT)
_N_EDGES: tl.constexpr = tl.constexpr(N_EDGES)
_N_STEPS: tl.constexpr = tl.constexpr(N_STEPS)
_N_BINS: tl.constexpr = tl.constexpr(N_BINS)
_MAGNITUDE: tl.constexpr = tl.constexpr(0x7FFFFFFF)
_INFINITY: tl.constexpr = tl.constexpr(0x7F800000)
# A later peak and its position in one number: of equal ones the largest is the first.
_LAST_POSITION: tl.constexpr = tl.constexpr(0xFFFF)
# A little more than what the host asks for, whose sums differ in their last bits.
_VARIANCE_SHARE: tl.constexpr = tl.constexpr(1.01 * SMALLEST_VARIANCE_SHARE)


@kernel
def _bits_of(raw, divisor, IS_DIVIDED: tl.constexpr):
    """The float32 pattern of values, divided."""
    x = raw.to(tl.float32)
    if IS_DIVIDED:
        x = tl.div_rn(x, divisor)
    return x.to(tl.int32, bitcast=True)


@kernel
def _digit_of(raw, bits, shift, IS_SHORT: tl.constexpr):
    """A magnitude's bits from `shift` on: of the format itself where that has 16 bits, else of float32."""
    if IS_SHORT:
        magnitude = raw.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        magnitude = bits & _MAGNITUDE
    return magnitude >> shift


@kernel
def token_divisors(x, divisors, n_features, SPAN: tl.constexpr, N_HALVINGS: tl.constexpr):
    """Each token's RMS, or infinity where that is 0. The squares are added as the balanced tree of the twins."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SPAN)
    inside = at < n_features
    value = tl.load(x + token * n_features + at, mask=inside, other=0.0).to(tl.float32)
    is_finite = (value.to(tl.int32, bitcast=True) & _MAGNITUDE) < _INFINITY
    squares = tl.where(is_finite, value, 0.0).to(tl.float64)
    squares = squares * squares
    for _ in tl.static_range(N_HALVINGS):
        low, high = tl.split(tl.trans(tl.reshape(squares, (2, squares.shape[0] // 2))))
        squares = low + high
    total = tl.sum(squares, axis=0)
    n_finite = tl.sum((is_finite & inside).to(tl.int32), axis=0)
    rms = tl.sqrt(total / tl.maximum(n_finite, 1).to(tl.float64)).to(tl.float32)
    tl.store(divisors + token, tl.where(rms > 0, rms, float("inf")))


@kernel
def tally(
    x,
    divisors,
    union,
    histogram,
    digit_counts,
    first,
    later,
    sums,
    n_nonfinite,
    n_positions,
    n_features,
    floor_rung,
    SHIFT: tl.constexpr,
    HAS_UNION: tl.constexpr,
    IS_DIVIDED: tl.constexpr,
    IS_SHORT: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Count a part of the positions of some features of one sequence."""
    sequence, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    feature = tl.program_id(0) * LANES + tl.arange(0, LANES)
    is_feature = feature < n_features
    start = part * PART
    peak = tl.zeros((LANES,), tl.int64)
    sum1 = tl.zeros((LANES,), tl.float64)
    sum2 = tl.zeros((LANES,), tl.float64)
    sum3 = tl.zeros((LANES,), tl.float64)
    sum4 = tl.zeros((LANES,), tl.float64)
    n_left_out = tl.zeros((LANES,), tl.int32)
    digits = tl.zeros((_N_BINS,), tl.int32)
    for row in range(0, PART, ROWS):
        position = start + row + tl.arange(0, ROWS)
        is_inside = (position < n_positions)[:, None] & is_feature[None, :]
        token = sequence * n_positions + position
        at = token[:, None] * n_features + feature[None, :]
        raw = tl.load(x + at, mask=is_inside, other=0.0)
        divisor = 1.0
        if IS_DIVIDED:
            divisor = tl.load(divisors + token, mask=position < n_positions, other=1.0)[:, None]
        bits = _bits_of(raw, divisor, IS_DIVIDED)
        magnitude = bits & _MAGNITUDE
        is_finite = magnitude < _INFINITY
        n_left_out += tl.sum((~is_finite).to(tl.int32), axis=0)
        digit = _digit_of(raw, bits, SHIFT, IS_SHORT)
        # One dimension, as a histogram wants it.
        digits += tl.histogram(
            tl.reshape(digit, (ROWS * LANES,)), _N_BINS, mask=tl.reshape(is_finite & is_inside, (ROWS * LANES,))
        )
        magnitude = tl.where(is_finite, magnitude, 0)
        step = tl.minimum(tl.maximum((magnitude >> _SHIFT) - (floor_rung - 1), 0), _N_EDGES)
        if HAS_UNION:
            seen = tl.load(union + at, mask=is_inside, other=0)
            tl.store(union + at, tl.maximum(seen, step.to(tl.uint8)), mask=is_inside)
        counted = histogram + (sequence * _N_STEPS + step) * n_features + feature[None, :]
        tl.atomic_add(counted, 1, mask=is_inside & (step > 0), sem="relaxed")
        is_later = is_inside & (position > 0)[:, None] & (magnitude > 0)
        keys = (magnitude.to(tl.int64) << 16) | (-position + _LAST_POSITION).to(tl.int64)[:, None]
        peak = tl.maximum(peak, tl.max(tl.where(is_later, keys, 0), axis=0))
        value = tl.where(is_finite, bits, 0).to(tl.float32, bitcast=True).to(tl.float64)
        square = value * value
        sum1 += tl.sum(value, axis=0)
        sum2 += tl.sum(square, axis=0)
        sum3 += tl.sum(square * value, axis=0)
        sum4 += tl.sum(square * square, axis=0)
    if part == 0:
        raw = tl.load(x + sequence * n_positions * n_features + feature, mask=is_feature, other=0.0)
        divisor = 1.0
        if IS_DIVIDED:
            divisor = tl.load(divisors + sequence * n_positions)
        bits = _bits_of(raw, divisor, IS_DIVIDED)
        bits = tl.where((bits & _MAGNITUDE) < _INFINITY, bits, 0)
        tl.store(first + sequence * n_features + feature, bits, mask=is_feature)
    place = (sequence * tl.num_programs(1) + part) * n_features + feature
    tl.store(later + place, peak, mask=is_feature)
    tl.store(n_nonfinite + place, n_left_out, mask=is_feature)
    place = (sequence * tl.num_programs(1) + part) * 4 * n_features + feature
    tl.store(sums + place, sum1, mask=is_feature)
    tl.store(sums + place + n_features, sum2, mask=is_feature)
    tl.store(sums + place + 2 * n_features, sum3, mask=is_feature)
    tl.store(sums + place + 3 * n_features, sum4, mask=is_feature)
    bins = tl.arange(0, _N_BINS)
    tl.atomic_add(digit_counts + sequence * _N_BINS + bins, digits, mask=digits > 0, sem="relaxed")


@kernel
def count_digit(
    x,
    divisors,
    digit_counts,
    n_sequences,
    n_positions,
    n_features,
    SHIFT: tl.constexpr,
    N_BEFORE: tl.constexpr,
    IS_DIVIDED: tl.constexpr,
    IS_SHORT: tl.constexpr,
    WIDTH: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Count the next digit of the magnitudes that begin as the median does."""
    sequence, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    bins = tl.arange(0, _N_BINS)
    prefix = tl.zeros((), tl.int32)
    rank = tl.zeros((), tl.int32)
    for before in tl.static_range(N_BEFORE):
        counts = tl.load(digit_counts + (before * n_sequences + sequence) * _N_BINS + bins)
        if before == 0:
            rank = tl.maximum(tl.sum(counts, axis=0) - 1, 0) // 2
        total = tl.cumsum(counts, axis=0)
        digit = tl.minimum(tl.sum((total <= rank).to(tl.int32), axis=0), _N_BINS - 1)
        rank -= tl.sum(tl.where(bins < digit, counts, 0), axis=0)
        # All digits before the last have eight bits.
        prefix = (prefix << 8) | digit
    feature = tl.program_id(0) * LANES + tl.arange(0, LANES)
    found = tl.zeros((_N_BINS,), tl.int32)
    for row in range(0, PART, ROWS):
        position = part * PART + row + tl.arange(0, ROWS)
        is_inside = (position < n_positions)[:, None] & (feature < n_features)[None, :]
        token = sequence * n_positions + position
        raw = tl.load(x + token[:, None] * n_features + feature[None, :], mask=is_inside, other=0.0)
        divisor = 1.0
        if IS_DIVIDED:
            divisor = tl.load(divisors + token, mask=position < n_positions, other=1.0)[:, None]
        bits = _bits_of(raw, divisor, IS_DIVIDED)
        digits = _digit_of(raw, bits, SHIFT, IS_SHORT)
        is_counted = is_inside & ((bits & _MAGNITUDE) < _INFINITY) & ((digits >> WIDTH) == prefix)
        digits = digits & ((1 << WIDTH) - 1)
        found += tl.histogram(
            tl.reshape(digits, (ROWS * LANES,)), _N_BINS, mask=tl.reshape(is_counted, (ROWS * LANES,))
        )
    into = digit_counts + (N_BEFORE * n_sequences + sequence) * _N_BINS + bins
    tl.atomic_add(into, found, mask=found > 0, sem="relaxed")


@kernel
def join_parts(
    x,
    divisors,
    first,
    later,
    sums,
    n_nonfinite,
    peaks,
    later_position,
    top_step,
    joined_sums,
    joined_nonfinite,
    n_positions,
    n_features,
    n_parts,
    floor_rung,
    IS_DIVIDED: tl.constexpr,
    LANES: tl.constexpr,
):
    """Add up the parts of a sequence in their order, and look up the values where features peak."""
    sequence = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(0) * LANES + tl.arange(0, LANES)
    is_feature = feature < n_features
    peak = tl.zeros((LANES,), tl.int64)
    n_left_out = tl.zeros((LANES,), tl.int32)
    sum1 = tl.zeros((LANES,), tl.float64)
    sum2 = tl.zeros((LANES,), tl.float64)
    sum3 = tl.zeros((LANES,), tl.float64)
    sum4 = tl.zeros((LANES,), tl.float64)
    for part in range(n_parts):
        place = (sequence * n_parts + part) * n_features + feature
        peak = tl.maximum(peak, tl.load(later + place, mask=is_feature, other=0))
        n_left_out += tl.load(n_nonfinite + place, mask=is_feature, other=0)
        place = (sequence * n_parts + part) * 4 * n_features + feature
        sum1 += tl.load(sums + place, mask=is_feature, other=0.0)
        sum2 += tl.load(sums + place + n_features, mask=is_feature, other=0.0)
        sum3 += tl.load(sums + place + 2 * n_features, mask=is_feature, other=0.0)
        sum4 += tl.load(sums + place + 3 * n_features, mask=is_feature, other=0.0)
    magnitude = (peak >> 16).to(tl.int32)
    position = tl.where(peak > 0, -(peak & _LAST_POSITION).to(tl.int32) + _LAST_POSITION, 0)
    token = sequence * n_positions + position
    raw = tl.load(x + token * n_features + feature, mask=is_feature, other=0.0)
    divisor = 1.0
    if IS_DIVIDED:
        divisor = tl.load(divisors + token, mask=is_feature, other=1.0)
    later_bits = _bits_of(raw, divisor, IS_DIVIDED)
    row = sequence * n_features + feature
    first_bits = tl.load(first + row, mask=is_feature, other=0)
    first_magnitude = first_bits & _MAGNITUDE
    value = tl.where(first_magnitude >= magnitude, first_bits, later_bits)
    highest = tl.maximum(first_magnitude, magnitude)
    step = tl.minimum(tl.maximum((highest >> _SHIFT) - (floor_rung - 1), 0), _N_EDGES)
    place = sequence * 3 * n_features + feature
    tl.store(peaks + place, first_magnitude, mask=is_feature)
    tl.store(peaks + place + n_features, magnitude, mask=is_feature)
    tl.store(peaks + place + 2 * n_features, value, mask=is_feature)
    tl.store(later_position + row, position.to(tl.uint16), mask=is_feature)
    tl.store(top_step + row, step.to(tl.uint8), mask=is_feature)
    tl.store(joined_nonfinite + row, n_left_out, mask=is_feature)
    place = sequence * 4 * n_features + feature
    tl.store(joined_sums + place, sum1, mask=is_feature)
    tl.store(joined_sums + place + n_features, sum2, mask=is_feature)
    tl.store(joined_sums + place + 2 * n_features, sum3, mask=is_feature)
    tl.store(joined_sums + place + 3 * n_features, sum4, mask=is_feature)


@kernel
def finish_sequences(
    top_step, joined_sums, joined_nonfinite, ends, moments, n_positions, n_features, LANES: tl.constexpr
):
    """Where each feature's list of counts ends; and a sequence's finite values, their mean and their mean square."""
    sequence = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    end = tl.zeros((), tl.int64)
    for start in range(0, sequence * n_features, LANES):
        at = start + lane
        end += tl.sum(tl.load(top_step + at, mask=at < sequence * n_features, other=0).to(tl.int64), axis=0)
    n_left_out = tl.zeros((), tl.int64)
    sum1 = tl.zeros((), tl.float64)
    sum2 = tl.zeros((), tl.float64)
    for start in range(0, n_features, LANES):
        feature = start + lane
        is_feature = feature < n_features
        row = sequence * n_features + feature
        lengths = tl.load(top_step + row, mask=is_feature, other=0).to(tl.int64)
        tl.store(ends + row, end + tl.cumsum(lengths, axis=0), mask=is_feature)
        end += tl.sum(lengths, axis=0)
        n_left_out += tl.sum(tl.load(joined_nonfinite + row, mask=is_feature, other=0).to(tl.int64), axis=0)
        place = sequence * 4 * n_features + feature
        sum1 += tl.sum(tl.load(joined_sums + place, mask=is_feature, other=0.0), axis=0)
        sum2 += tl.sum(tl.load(joined_sums + place + n_features, mask=is_feature, other=0.0), axis=0)
    n_finite = n_positions.to(tl.int64) * n_features - n_left_out
    divisor = tl.maximum(n_finite, 1).to(tl.float64)
    tl.store(moments + 2 * sequence, sum1 / divisor)
    tl.store(moments + 2 * sequence + 1, sum2 / divisor)


@kernel
def list_counts(histogram, top_step, ends, counts, n_features, LANES: tl.constexpr):
    """Write each feature's counts at or above the steps from 1 to its top one, where its list stands."""
    sequence = tl.program_id(1).to(tl.int64)
    feature = tl.program_id(0) * LANES + tl.arange(0, LANES)
    is_feature = feature < n_features
    row = sequence * n_features + feature
    top = tl.load(top_step + row, mask=is_feature, other=0).to(tl.int32)
    start = tl.load(ends + row, mask=is_feature, other=0) - top
    reached = tl.zeros((LANES,), tl.int32)
    highest = tl.max(top, axis=0)
    for below in range(highest):
        step = highest - below
        is_listed = is_feature & (step <= top)
        reached += tl.load(histogram + (sequence * _N_STEPS + step) * n_features + feature, mask=is_listed, other=0)
        tl.store(counts + start + step - 1, reached.to(tl.uint16), mask=is_listed)


@kernel
def sum_about_mean(
    x,
    divisors,
    moments,
    sums,
    n_positions,
    n_features,
    IS_DIVIDED: tl.constexpr,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Sums of the first four powers of the distance from the mean, where that is large beside the spread."""
    block, part, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    mean = tl.load(moments + 2 * sequence)
    mean_square = tl.load(moments + 2 * sequence + 1)
    sum1 = tl.zeros((LANES,), tl.float64)
    sum2 = tl.zeros((LANES,), tl.float64)
    sum3 = tl.zeros((LANES,), tl.float64)
    sum4 = tl.zeros((LANES,), tl.float64)
    if mean_square - mean * mean < mean_square * _VARIANCE_SHARE:
        centre = mean.to(tl.float32).to(tl.float64)
        feature = block * LANES + tl.arange(0, LANES)
        for row in range(0, PART, ROWS):
            position = part * PART + row + tl.arange(0, ROWS)
            is_inside = (position < n_positions)[:, None] & (feature < n_features)[None, :]
            token = sequence * n_positions + position
            raw = tl.load(x + token[:, None] * n_features + feature[None, :], mask=is_inside, other=0.0)
            divisor = 1.0
            if IS_DIVIDED:
                divisor = tl.load(divisors + token, mask=position < n_positions, other=1.0)[:, None]
            bits = _bits_of(raw, divisor, IS_DIVIDED)
            is_counted = is_inside & ((bits & _MAGNITUDE) < _INFINITY)
            distance = tl.where(is_counted, bits.to(tl.float32, bitcast=True).to(tl.float64) - centre, 0.0)
            square = distance * distance
            sum1 += tl.sum(distance, axis=0)
            sum2 += tl.sum(square, axis=0)
            sum3 += tl.sum(square * distance, axis=0)
            sum4 += tl.sum(square * square, axis=0)
    place = sums + ((sequence * tl.num_programs(1) + part) * tl.num_programs(0) + block) * 4
    tl.store(place, tl.sum(sum1, axis=0))
    tl.store(place + 1, tl.sum(sum2, axis=0))
    tl.store(place + 2, tl.sum(sum3, axis=0))
    tl.store(place + 3, tl.sum(sum4, axis=0))


@kernel
def tally_union(
    union,
    histogram,
    later,
    n_positions,
    n_features,
    PART: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Count the steps of a part of the positions of some features of one sequence's union."""
    sequence, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    feature = tl.program_id(0) * LANES + tl.arange(0, LANES)
    highest = tl.zeros((LANES,), tl.int32)
    for row in range(0, PART, ROWS):
        position = part * PART + row + tl.arange(0, ROWS)
        is_inside = (position < n_positions)[:, None] & (feature < n_features)[None, :]
        at = (sequence * n_positions + position)[:, None] * n_features + feature[None, :]
        step = tl.load(union + at, mask=is_inside, other=0).to(tl.int32)
        counted = histogram + (sequence * _N_STEPS + step) * n_features + feature[None, :]
        tl.atomic_add(counted, 1, mask=is_inside & (step > 0), sem="relaxed")
        highest = tl.maximum(highest, tl.max(tl.where((position > 0)[:, None], step, 0), axis=0))
    tl.atomic_max(later + sequence * n_features + feature, highest, mask=feature < n_features, sem="relaxed")
