"""What is recorded, and how the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.definitions.sharding import WHOLE, Shard
from outlier_moe.definitions.taps import TAPS, Tap
from outlier_moe.errors import StudyError, nearest

Dtype = Literal["checkpoint", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cuda", "mps", "cpu"]
ModeOption = Literal["auto", "resident", "streamed"]

N_SEQUENCES = 16
"""Sequences of a text, if nobody says."""
SEQUENCE_LENGTH = 2048
"""Tokens of each, if nobody says."""


@dataclass(frozen=True)
class RecordOptions:
    """The options of one recording. The first four decide its figures, the others only speed and memory."""

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
    mode: ModeOption = "auto"
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


def checked_options(choices: Mapping[str, Any]) -> RecordOptions:
    """Options from a call or a command line, where no schema has seen them.

    Raises:
        StudyError: If there is no such option, or a value is none of its values.
    """
    names = [field.name for field in fields(RecordOptions) if field.name != "shard"]
    for key, value in choices.items():
        if key not in names:
            raise StudyError(
                "There is no such option.", key=key, expected=", ".join(names), remedy=nearest(key, names).capitalize()
            )
        if (expected := _expected(key, value)) is not None:
            raise StudyError("An option has no such value.", key=key, expected=expected, got=repr(value))
    options = RecordOptions(**{**choices, **({"taps": tuple(choices["taps"])} if "taps" in choices else {})})
    # Says so if the floor is no edge.
    _ = options.ladder
    return options


def _expected(key: str, value: Any) -> str | None:
    """What a value should have been; None if it is right."""
    words = {"dtype": get_args(Dtype), "device": get_args(Device), "mode": get_args(ModeOption)}
    if key in words:
        return None if value in words[key] else ", ".join(words[key])
    if key == "taps":
        is_some = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
        return None if is_some and len({*value}) == len(value) and {*value} <= {*TAPS} else f"some of {', '.join(TAPS)}"
    if key == "evict":
        return None if value in (True, False, "auto") else "True, False or auto"
    if key == "floor":
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if key == "chunk":
        return None if is_count or value == "auto" else "a whole number from 1 up, or auto"
    return None if is_count else "a whole number from 1 up"
