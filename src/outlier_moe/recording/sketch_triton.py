"""The sketch on a card, of fused Triton kernels: a site is read once for its counts, and once a digit for its median.

Nothing here waits for the card but `PendingSketch.result`, which may be called on another thread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from jaxtyping import Float, Float32, Int32, UInt8, UInt16
from torch import Tensor

from outlier_moe.definitions.ladder import N_EDGES, Ladder
from outlier_moe.recording import triton_kernels as kernels
from outlier_moe.recording.tally import Scale, SiteSketch, Tally, UnionSketch, site_sketch, union_sketch
from outlier_moe.recording.triton_kernels import N_BINS, N_STEPS

# A row of 64 features of 16 bits is one line of the card's cache. Of the positions enough to pay for a program's start,
# few enough for a short sequence to keep a large card busy. Sums depend on it in their last bits.
TILE = {"PART": 512, "ROWS": 32, "LANES": 64}
# Features at a time where one program has a whole sequence.
WIDE = 1024


class Digits(NamedTuple):
    """The digits of a magnitude's bit pattern, from the top: the median is found by one after the other."""

    shifts: tuple[int, ...]
    """Bits below each digit."""
    widths: tuple[int, ...]
    """Bits of each digit."""


# Of the 15 bits of a 16-bit format's magnitude, and the 31 bits of float32's.
SHORT = Digits((7, 0), (8, 7))
LONG = Digits((23, 15, 7, 0), (8, 8, 8, 7))

Array = tuple[tuple[int, ...], torch.dtype]
"""Shape and dtype of an array."""


class Bundle:
    """Arrays in one buffer, so that one copy takes them along.

    Args:
        arrays: What they are.
        device: Where they are.
    """

    def __init__(self, arrays: Mapping[str, Array], device: torch.device) -> None:
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in arrays.items()}
        # Each begins at a multiple of 16 bytes.
        ends = np.cumsum([-(-size // 16) * 16 for size in sizes.values()])
        self.arrays = arrays
        self.buffer = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        self._starts = dict(zip(arrays, [0, *ends[:-1].tolist()], strict=True))
        self._sizes = sizes

    def views(self, buffer: UInt8[Tensor, " byte"] | None = None) -> dict[str, Any]:
        """The arrays, in this buffer or in a copy of it."""
        buffer = self.buffer if buffer is None else buffer
        parts = {name: buffer[start : start + self._sizes[name]] for name, start in self._starts.items()}
        return {name: parts[name].view(dtype).view(shape) for name, (shape, dtype) in self.arrays.items()}


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a card's results go to the host."""
    return torch.cuda.Stream(device)


class Arrival:
    """An array of a card on its way to the host.

    Args:
        array: The array.
        is_ready: Whether it is computed; otherwise the copy waits for all that the current stream has to do.
    """

    def __init__(self, array: Tensor, *, is_ready: bool = False) -> None:
        self._event: Any = None
        if array.device.type != "cuda":
            self._host = array
            return
        stream = _copying(array.device)
        if not is_ready:
            stream.wait_stream(torch.cuda.current_stream(array.device))
        self._host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        with torch.cuda.stream(stream):
            self._host.copy_(array, non_blocking=True)
            self._event = stream.record_event()
        array.record_stream(stream)

    def wait(self) -> Tensor:
        """The array on the host, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class PendingSketch:
    """A site's sketch, of which the figures are on their way to the host.

    Args:
        found: The figures of fixed size.
        counts: The features' lists of counts, and room behind them.
        digits: The digits that the median was found by.
        dtype: The format that they are digits of.
        n_positions: Positions of each sequence.
    """

    def __init__(
        self, found: Bundle, counts: UInt16[Tensor, " room"], digits: Digits, dtype: torch.dtype, n_positions: int
    ) -> None:
        self._found = found
        self._counts = counts
        self._digits = digits
        self._dtype = dtype
        self._n_positions = n_positions
        self._arrival = Arrival(found.buffer)

    def result(self) -> SiteSketch:
        """The sketch; waits for the card if need be."""
        found = {name: array.numpy() for name, array in self._found.views(self._arrival.wait()).items()}
        n_counts = int(found["ends"][-1, -1])
        first, later, value = found["peaks"].view(np.float32).swapaxes(0, 1)
        tally = Tally(
            first=first,
            later=later,
            later_position=found["later_position"],
            peak_value=value,
            top_step=found["top_step"],
            n_positions=Arrival(self._counts[:n_counts], is_ready=True).wait().numpy().copy(),
            sums=found["sums"],
            n_nonfinite=found["n_nonfinite"].astype(np.int64),
            median=medians(found["digit_counts"], self._digits, self._dtype),
        )
        about_mean = found["sums_about_mean"].sum(axis=1)
        return site_sketch(tally, n_positions=self._n_positions, central_sums=lambda s, _: about_mean[s])


def medians(
    digit_counts: Int32[np.ndarray, "digit sequence bin"], digits: Digits, dtype: torch.dtype
) -> Float32[np.ndarray, " sequence"]:
    """The lower medians of the magnitudes of sequences, each from the counts of its digits; 0 of no value."""
    n_finite = digit_counts[0].sum(axis=1)
    rank = np.maximum(n_finite - 1, 0) // 2
    pattern = np.zeros(len(rank), np.int64)
    for counts, width in zip(digit_counts, digits.widths, strict=True):
        digit = np.minimum((np.cumsum(counts, axis=1) <= rank[:, None]).sum(axis=1), (1 << width) - 1)
        rank = rank - np.where(np.arange(N_BINS) < digit[:, None], counts, 0).sum(axis=1)
        pattern = (pattern << width) | digit
    pattern = np.where(n_finite > 0, pattern, 0)
    if digits is LONG:
        return pattern.astype(np.int32).view(np.float32)
    return torch.from_numpy(pattern.astype(np.int16)).view(dtype).float().numpy()


def start_sketch(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> PendingSketch:
    """Have a site counted where it is, without waiting for it."""
    x = x.contiguous()
    kept = None if union is None else union.contiguous()
    n_sequences, n_positions, n_features = x.shape
    is_divided = scale == "token_rms"
    is_short = x.itemsize == 2 and not is_divided
    digits = SHORT if is_short else LONG
    n_parts, n_blocks = triton.cdiv(n_positions, TILE["PART"]), triton.cdiv(n_features, TILE["LANES"])
    shape, by_part = (n_sequences, n_features), (n_sequences, n_parts, n_features)
    found = Bundle(
        {
            "peaks": ((n_sequences, 3, n_features), torch.int32),
            "later_position": (shape, torch.uint16),
            "top_step": (shape, torch.uint8),
            "ends": (shape, torch.int64),
            "sums": ((n_sequences, 4, n_features), torch.float64),
            "n_nonfinite": (shape, torch.int32),
            "moments": ((n_sequences, 2), torch.float64),
            "sums_about_mean": ((n_sequences, n_parts * n_blocks, 4), torch.float64),
            "digit_counts": ((len(digits.shifts), n_sequences, N_BINS), torch.int32),
        },
        x.device,
    )
    views = found.views()
    digit_counts = views["digit_counts"].zero_()
    histogram = x.new_zeros((n_sequences, N_STEPS, n_features), dtype=torch.int32)
    first = x.new_empty(shape, dtype=torch.int32)
    later = x.new_empty(by_part, dtype=torch.int64)
    sums = x.new_empty((n_sequences, n_parts, 4, n_features), dtype=torch.float64)
    n_nonfinite = x.new_empty(by_part, dtype=torch.int32)
    divisors = x.new_empty((n_sequences, n_positions) if is_divided else 1, dtype=torch.float32)
    counts = x.new_empty(n_sequences * n_features * N_EDGES, dtype=torch.uint16)
    site = {"n_positions": n_positions, "n_features": n_features}
    grid, divided = (n_blocks, n_parts, n_sequences), {"IS_DIVIDED": is_divided}
    if is_divided:
        _divide(x, divisors)
    kernels.tally[grid](
        x,
        divisors,
        digit_counts if kept is None else kept,
        histogram,
        digit_counts,
        first,
        later,
        sums,
        n_nonfinite,
        **site,
        floor_rung=ladder.floor_rung,
        SHIFT=digits.shifts[0],
        HAS_UNION=union is not None,
        IS_SHORT=is_short,
        **divided,
        **TILE,
    )
    if union is not None and kept is not None and kept is not union:
        union.copy_(kept)
    for number in range(1, len(digits.shifts)):
        kernels.count_digit[grid](
            x,
            divisors,
            digit_counts,
            n_sequences,
            **site,
            SHIFT=digits.shifts[number],
            WIDTH=digits.widths[number],
            N_BEFORE=number,
            IS_SHORT=is_short,
            **divided,
            **TILE,
        )
    kernels.join_parts[n_blocks, n_sequences](
        x,
        divisors,
        first,
        later,
        sums,
        n_nonfinite,
        *(views[name] for name in ("peaks", "later_position", "top_step", "sums", "n_nonfinite")),
        **site,
        n_parts=n_parts,
        floor_rung=ladder.floor_rung,
        **divided,
        LANES=TILE["LANES"],
    )
    kernels.finish_sequences[n_sequences,](
        *(views[name] for name in ("top_step", "sums", "n_nonfinite", "ends", "moments")), **site, LANES=WIDE
    )
    kernels.list_counts[n_blocks, n_sequences](
        histogram, views["top_step"], views["ends"], counts, n_features, LANES=TILE["LANES"]
    )
    kernels.sum_about_mean[grid](x, divisors, views["moments"], views["sums_about_mean"], **site, **divided, **TILE)
    return PendingSketch(found, counts, digits, x.dtype, n_positions)


def sketch_site(
    x: Float[Tensor, "sequence position feature"],
    *,
    ladder: Ladder,
    union: UInt8[Tensor, "sequence position feature"] | None,
    scale: Scale,
) -> SiteSketch:
    """The sketch of one site; waits for the card."""
    return start_sketch(x, ladder=ladder, union=union, scale=scale).result()


def _divide(x: Float[Tensor, "sequence position feature"], divisors: Float32[Tensor, "sequence position"]) -> None:
    span = triton.next_power_of_2(x.shape[2])
    kernels.token_divisors[divisors.numel(),](
        x,
        divisors,
        x.shape[2],
        SPAN=span,
        N_HALVINGS=span.bit_length() - 1,
        # Wide rows would not fit the registers of four.
        num_warps=4 if span <= 2048 else 8 if span <= 16384 else 16,
    )


def sketch_union(union: UInt8[Tensor, "sequence position feature"]) -> UnionSketch:
    """The counts over a union; waits for the card."""
    union = union.contiguous()
    n_sequences, n_positions, n_features = union.shape
    n_parts, n_blocks = triton.cdiv(n_positions, TILE["PART"]), triton.cdiv(n_features, TILE["LANES"])
    histogram = union.new_zeros((n_sequences, N_STEPS, n_features), dtype=torch.int32)
    later = union.new_zeros((n_sequences, n_features), dtype=torch.int32)
    kernels.tally_union[n_blocks, n_parts, n_sequences](union, histogram, later, n_positions, n_features, **TILE)
    first = union[:, 0].contiguous()
    top = torch.maximum(first, later.to(torch.uint8))
    ends = top.flatten().cumsum(0, dtype=torch.int64)
    counts = union.new_empty(n_sequences * n_features * N_EDGES, dtype=torch.uint16)
    kernels.list_counts[n_blocks, n_sequences](histogram, top, ends, counts, n_features, LANES=TILE["LANES"])
    n_counts = int(ends[-1])
    return union_sketch(
        top.cpu().numpy(), first.cpu().numpy(), later.to(torch.uint8).cpu().numpy(), counts[:n_counts].cpu().numpy()
    )
