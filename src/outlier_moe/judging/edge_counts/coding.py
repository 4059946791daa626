"""The counts at every edge in few bytes, readable by numpy and by the report's JavaScript alike.

Whole numbers only, each stream of them split into planes of bytes and deflated together. Where features are pooled,
rows are ordered by how far up they are kept, so that the rows of an edge are the first so many, and each stores by how
much it falls from the edge below. Where sequences are judged alone nothing but the number of pairs beyond two
thresholds is ever asked, so the pairs of an edge are stored as a sorted multiset. The number of distinct features
among them comes from the features' staircases: of the pairs of one feature, those that no other exceeds in both counts,
minus the corner between each two neighbours, leave exactly one wherever there is any.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from outlier_moe.definitions.presets import CountShape
from outlier_moe.judging.edge_counts.counting import EdgeCounts

Stream = Int64[np.ndarray, " _length"]


class Staircases(NamedTuple):
    """The points of all features' staircases at one edge: the sum of the signs beyond two thresholds is a count."""

    n_layers: Int64[np.ndarray, " point"]
    n_positions: Int64[np.ndarray, " point"]
    sign: Int64[np.ndarray, " point"]


class CountsAtEdge(NamedTuple):
    """The counts of one edge, by first token included and excluded."""

    n_layers: Int64[np.ndarray, "first_token=2 unit"]
    n_positions: Int64[np.ndarray, "first_token=2 unit"]


@dataclass(frozen=True)
class StoredCounts:
    """The counts of one shape as a file stores them."""

    shape: CountShape
    """What is counted, and over what."""
    floor: float
    """The lowest edge."""
    d_model: int
    """Features of the residual stream."""
    whole_layers: int
    """What a layer fraction is taken over."""
    whole_positions: tuple[int, int]
    """What a position fraction is taken over, with and without first tokens."""
    least_layers: float
    """The least layer fraction that the counts can be held against."""
    least_positions: float
    """The least position fraction that the counts can be held against."""
    streams: dict[str, Stream]
    """The numbers, coded."""

    @property
    def n_edges(self) -> int:
        """Edges from the floor at which anything is kept."""
        return len(self.streams["n_rows"])

    @property
    def feature(self) -> Stream:
        """The features whose counts `at` gives, in that order; pooled features only."""
        return self.streams["feature"]

    @cached_property
    def peak(self) -> Float32[np.ndarray, "first_token=2 unit"]:
        """Their largest |x|."""
        bits = [self.streams[name].astype(np.uint32).view(np.float32) for name in ("peak_bits", "later_peak_bits")]
        return np.stack(bits)

    @cached_property
    def _edges(self) -> list[CountsAtEdge]:
        read = _read_rows if self.shape.unit == "feature" else _read_pairs
        return read(self.streams)

    def at(self, edge: int) -> CountsAtEdge:
        """The counts at an edge; none above the last edge kept."""
        if edge < self.n_edges:
            return self._edges[edge]
        return CountsAtEdge(np.empty((2, 0), np.int64), np.empty((2, 0), np.int64))

    def staircases(self, edge: int, side: int) -> Staircases:
        """The staircases at an edge; `side` 0 includes first tokens, 1 leaves them out."""
        prefix = ("included", "excluded")[side]
        if edge >= self.n_edges:
            return Staircases(*(np.empty(0, np.int64) for _ in range(3)))
        ends = np.cumsum(self.streams[f"{prefix}_n_points"])
        chosen = slice(ends[edge] - self.streams[f"{prefix}_n_points"][edge], ends[edge])
        layers, positions = _summed(
            self.streams[f"{prefix}_layers"][chosen], self.streams[f"{prefix}_positions"][chosen]
        )
        return Staircases(layers, positions, 1 - 2 * self.streams[f"{prefix}_is_corner"][chosen])


def encode_counts(counts: EdgeCounts) -> StoredCounts:
    """Code the counts of one shape."""
    write = _row_streams if counts.shape.unit == "feature" else _pair_streams
    return StoredCounts(
        shape=counts.shape,
        floor=counts.floor,
        d_model=counts.d_model,
        whole_layers=counts.whole_layers,
        whole_positions=counts.whole_positions,
        least_layers=counts.least_layers,
        least_positions=counts.least_positions,
        streams=write(counts),
    )


def _row_streams(counts: EdgeCounts) -> dict[str, Stream]:
    order = np.lexsort((counts.feature, -counts.n_kept))
    n_kept = counts.n_kept[order]
    n_edges = int(n_kept.max(initial=0))
    layers, positions = (array[:, order] for array in (counts.n_layers, counts.n_positions))
    n_rows = np.array([(n_kept > edge).sum() for edge in range(n_edges)], np.int64)

    def falls(values: Int64[np.ndarray, "unit edge"]) -> Stream:
        steps = np.concatenate([values[:, :1], values[:, :-1] - values[:, 1:]], axis=1)
        return _joined([steps[:n, edge] for edge, n in enumerate(n_rows)])

    def lost(values: Int64[np.ndarray, "first_token=2 unit edge"]) -> Stream:
        return _joined([(values[0] - values[1])[:n, edge] for edge, n in enumerate(n_rows)])

    bits = counts.peak[:, order].view(np.uint32).astype(np.int64)
    return {
        "n_rows": n_rows,
        "feature": counts.feature[order],
        "peak_bits": bits[0],
        "later_peak_bits": bits[1],
        "layers": falls(layers[0]),
        "positions": falls(positions[0]),
        "layers_lost": lost(layers),
        "positions_lost": lost(positions),
    }


def _read_rows(streams: dict[str, Stream]) -> list[CountsAtEdge]:
    edges, start = [], 0
    layers, positions = np.empty(0, np.int64), np.empty(0, np.int64)
    for edge, n in enumerate(streams["n_rows"]):
        at = slice(start, start + int(n))
        fall = streams["layers"][at], streams["positions"][at]
        layers, positions = fall if edge == 0 else (layers[:n] - fall[0], positions[:n] - fall[1])
        lost = streams["layers_lost"][at], streams["positions_lost"][at]
        edges.append(CountsAtEdge(np.stack([layers, layers - lost[0]]), np.stack([positions, positions - lost[1]])))
        start += int(n)
    return edges


def _pair_streams(counts: EdgeCounts) -> dict[str, Stream]:
    streams: dict[str, list[Stream]] = {}

    def add(**values: Stream) -> None:
        for name, value in values.items():
            streams.setdefault(name, []).append(value)

    n_kept = counts.n_kept
    for edge in range(int(n_kept.max(initial=0))):
        rows = np.flatnonzero(n_kept > edge)
        layers, positions = counts.n_layers[:, rows, edge], counts.n_positions[:, rows, edge]
        layers_lost, positions_lost = layers[0] - layers[1], positions[0] - positions[1]
        order = np.lexsort((layers_lost, positions_lost, positions[0], layers[0]))
        layer_steps, position_steps = _steps(layers[0][order], positions[0][order])
        add(n_rows=np.array([len(rows)]), layers=layer_steps, positions=position_steps)
        add(layers_lost=layers_lost[order], positions_lost=positions_lost[order])
        for side, prefix in enumerate(("included", "excluded")):
            points = staircases(counts.feature[rows], layers[side], positions[side])
            order = np.lexsort((points.sign, points.n_positions, points.n_layers))
            layer_steps, position_steps = _steps(points.n_layers[order], points.n_positions[order])
            add(**{f"{prefix}_n_points": np.array([len(order)])})
            add(**{f"{prefix}_layers": layer_steps, f"{prefix}_positions": position_steps})
            add(**{f"{prefix}_is_corner": (points.sign[order] < 0).astype(np.int64)})
    return {name: _joined(values) for name, values in streams.items()} or {"n_rows": np.empty(0, np.int64)}


def staircases(feature: Stream, n_layers: Stream, n_positions: Stream) -> Staircases:
    """The staircases of pairs: those that no other pair of the feature exceeds in both counts, and their corners."""
    order = np.lexsort((-n_positions, -n_layers, feature))
    feature, n_layers, n_positions = feature[order], n_layers[order], n_positions[order]
    # Largest number of positions so far within the feature; an offset growing by feature starts it anew in the next.
    offset = feature * (int(n_positions.max(initial=0)) + 1)
    highest = np.maximum.accumulate(n_positions + offset)
    before = np.concatenate([[-1], highest[:-1]])
    outer = np.flatnonzero(n_positions + offset > np.maximum(before, offset - 1))
    feature, n_layers, n_positions = feature[outer], n_layers[outer], n_positions[outer]
    # Along a staircase layers fall and positions rise: of two neighbours the later has the fewer layers.
    inner = np.flatnonzero(feature[1:] == feature[:-1])
    return Staircases(
        n_layers=np.concatenate([n_layers, n_layers[inner + 1]]),
        n_positions=np.concatenate([n_positions, n_positions[inner]]),
        sign=np.concatenate([np.ones_like(n_layers), -np.ones_like(inner)]),
    )


def _steps(n_layers: Stream, n_positions: Stream) -> tuple[Stream, Stream]:
    """Differences of points sorted by layers, then positions; positions start anew where the layers change."""
    layer_steps = np.diff(n_layers, prepend=0)
    return layer_steps, np.where(layer_steps > 0, n_positions, np.diff(n_positions, prepend=0))


def _summed(layer_steps: Stream, position_steps: Stream) -> tuple[Stream, Stream]:
    total = np.cumsum(position_steps)
    is_start = layer_steps > 0
    if len(is_start):
        is_start[0] = True
    starts = np.flatnonzero(is_start)
    before = (total - position_steps)[starts]
    return np.cumsum(layer_steps), total - before[np.cumsum(is_start) - 1]


def _read_pairs(streams: dict[str, Stream]) -> list[CountsAtEdge]:
    edges, start = [], 0
    for n in streams["n_rows"]:
        at = slice(start, start + int(n))
        layers, positions = _summed(streams["layers"][at], streams["positions"][at])
        lost = streams["layers_lost"][at], streams["positions_lost"][at]
        edges.append(CountsAtEdge(np.stack([layers, layers - lost[0]]), np.stack([positions, positions - lost[1]])))
        start += int(n)
    return edges


def _joined(parts: list[Stream]) -> Stream:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def packed(streams: dict[str, Stream]) -> dict[str, Any]:
    """Streams as JSON: how long each is, how many bytes a number takes, and all their planes, deflated, in base64."""
    planes, layout = [], []
    for name, values in streams.items():
        width = max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)
        layout.append({"name": name, "length": len(values), "width": width})
        planes += [(values >> 8 * byte & 255).astype(np.uint8).tobytes() for byte in range(width)]
    return {"layout": layout, "deflated": base64.b64encode(zlib.compress(b"".join(planes), 9)).decode()}


def unpacked(document: dict[str, Any]) -> dict[str, Stream]:
    """The streams of `packed`."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(document["deflated"])), np.uint8)
    streams, start = {}, 0
    for stream in document["layout"]:
        values = np.zeros(stream["length"], np.int64)
        for byte in range(stream["width"]):
            values |= planes[start : start + len(values)].astype(np.int64) << 8 * byte
            start += len(values)
        streams[stream["name"]] = values
    return streams
