"""What is recorded, and how the model runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.sharding import WHOLE, Shard
from outlier_moe.definitions.taps import TAPS, Tap

Dtype = Literal["checkpoint", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "mps", "cpu"]


@dataclass(frozen=True)
class RecordOptions:
    """The choices behind one recording. The first four decide its figures; the others only how they are reached."""

    taps: tuple[Tap, ...] = TAPS
    """Where activations are read."""
    floor: float = 3.0
    """The lowest magnitude that is counted, an edge of the ladder."""
    n_peaks: int = 8
    """Features kept in peaks.parquet for each site and sequence."""
    dtype: Dtype = "checkpoint"
    """Precision of the forward pass."""
    device: Device = "auto"
    """Where the model runs; `auto` takes cuda, else mps, else cpu."""
    mode: Literal["auto", "resident", "streamed"] = "auto"
    """The whole model in memory, or one decoder layer at a time; `auto` takes the whole if it fits."""
    chunk: int | Literal["auto"] = "auto"
    """Sequences that go through the model together."""
    evict: bool | Literal["auto"] = "auto"
    """Whether a streamed model's shards from the hub are deleted after their use; `auto` if the disk is too small."""
    shard: Shard = WHOLE
    """The part of the sequences that is recorded."""

    @property
    def ladder(self) -> Ladder:
        """The edges on which magnitudes are counted."""
        return Ladder(floor=self.floor)
