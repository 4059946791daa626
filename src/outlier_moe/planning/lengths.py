"""Refusing sequences that are too long for a model before anything is fetched. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from outlier_moe.architectures.lengths import Positions, stated_positions, too_long
from outlier_moe.config.registry import CheckpointSource, DirectorySource, ModelEntry
from outlier_moe.errors import StudyError

# What a configuration says of rotations, which go on behind the last position.
ROTATIONS = ("rope_theta", "rope_scaling", "rope_parameters")


def refuse_long_sequences(entries: Iterable[ModelEntry], asked: int, models_directory: Path) -> None:
    """Refuse a length that a model of the study has no positions for, as far as is known without the hub.

    Args:
        entries: The study's models.
        asked: The study's length.
        models_directory: The folder with a folder for each fetched model.

    Raises:
        StudyError: If there are such models; it names them all.
    """
    found = {}
    for entry in entries:
        if entry.sequence_length == "model":
            continue
        positions = known_positions(entry, models_directory, longer_than=asked)
        if positions.is_table and positions.largest is not None and positions.largest < asked:
            found[entry.id] = positions.largest
    if found:
        raise too_long(asked, found)


def known_positions(entry: ModelEntry, models_directory: Path, *, longer_than: int) -> Positions:
    """The positions of a model by its configuration if that is on this machine, else by its entry."""
    said = Positions(entry.max_positions, is_table=entry.max_positions is not None)
    folder = models_directory / entry.id
    if not (folder / "config.json").is_file() and isinstance(entry.source, DirectorySource | CheckpointSource):
        folder = entry.source.path.expanduser()
    try:
        keys = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    # A stage that reads the file says what is wrong with it.
    except (OSError, ValueError, RecursionError):
        return said
    if not isinstance(keys, dict):
        return said
    text = keys.get("text_config")
    keys = {**keys, **(text if isinstance(text, dict) else {})}
    stated = stated_positions(keys)
    if any(name in keys for name in ROTATIONS) or (stated is not None and longer_than <= stated):
        return Positions(stated, is_table=False)
    # torch and transformers: to see whether longer sequences can be run the model is built, without weights.
    from outlier_moe.architectures.model_class import read_config
    from outlier_moe.architectures.positions import positions_of

    try:
        config = read_config(folder, trust_remote_code=entry.trust_remote_code)
        return positions_of(config, longer_than=longer_than, trust_remote_code=entry.trust_remote_code)
    except StudyError:
        return said
