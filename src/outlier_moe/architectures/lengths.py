"""How long a model's sequences are, and what to say if they are longer than it was made for. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from outlier_moe.errors import StudyError

KEY = "tokenize_corpus.sequence_length"
# What families call the most positions, in the order in which they are believed.
FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "seq_length")


class Positions(NamedTuple):
    """The positions that a model was made for."""

    largest: int | None
    """The longest sequence; None if there is no limit, or the configuration names none."""
    is_table: bool
    """Whether a longer sequence cannot run at all, since positions are rows of a table."""


class Length(NamedTuple):
    """The length of a model's sequences."""

    n_tokens: int
    """Tokens of a sequence, BOS included."""
    note: str | None
    """A remark for the user, if there is one."""


def length_for(asked: int, positions: Positions, *, shortens: bool, model: str) -> Length:
    """The length of a model's sequences.

    Args:
        asked: The study's length.
        positions: The model's.
        shortens: Whether the model's entry says `sequence_length: model`.
        model: How to name the model in a message.

    Raises:
        StudyError: If the model cannot take sequences of that length, and its entry does not allow shorter ones.
    """
    largest = positions.largest
    if largest is None or asked <= largest:
        return Length(asked, None)
    if shortens:
        return Length(largest, f"sequences have {largest} tokens, the most that the model was made for, not {asked}")
    if positions.is_table:
        raise too_long(asked, {model: largest})
    note = f"sequences have {asked} tokens, the model was made for {largest}: later positions were never trained"
    return Length(asked, note)


def too_long(asked: int, largest: Mapping[str, int]) -> StudyError:
    """The error for models whose table of positions is shorter than the sequences."""
    return StudyError(
        "Sequences are longer than a model's table of positions."
        if len(largest) == 1
        else "Sequences are longer than the tables of positions of some models.",
        key=KEY,
        expected=", ".join(f"at most {positions} for {model}" for model, positions in largest.items()),
        got=asked,
        remedy="Set `sequence_length: model` in the entry, which shortens this model's sequences alone, or lower "
        f"{KEY} to {min(largest.values())} for all models.",
    )


def stated_positions(keys: Mapping[str, Any]) -> int | None:
    """The largest number of positions in a configuration, before scaling."""
    numbers = (keys.get(field) for field in FIELDS)
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)
