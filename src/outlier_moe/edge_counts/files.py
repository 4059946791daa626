"""One JSON file a model with its counts at every edge, which the report takes in as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outlier_moe.edge_counts.coding import StoredCounts, packed, stored, unpacked
from outlier_moe.edge_counts.counting import count_at_edges
from outlier_moe.errors import StudyError
from outlier_moe.presets import CountShape
from outlier_moe.recording_files import Recording

FORMAT = 1
"""Version of the file; raised when an older reader would misread it."""


def write_edge_counts(
    recording: Recording, shapes: list[CountShape], path: Path, *, least_layers: float, least_positions: float
) -> None:
    """Count at every edge and write it down.

    Args:
        recording: The tables.
        shapes: What to count.
        path: Where to.
        least_layers: The least layer fraction that will be asked for.
        least_positions: The least position fraction that will be asked for.
    """
    counted = {
        shape.name: _document(
            stored(count_at_edges(recording, shape, least_layers=least_layers, least_positions=least_positions))
        )
        for shape in dict.fromkeys(shapes)
    }
    path.write_text(json.dumps({"format": FORMAT, "shapes": counted}, separators=(",", ":")) + "\n")


def _document(counts: StoredCounts) -> dict[str, Any]:
    return {
        "view": counts.shape.view,
        "layers": counts.shape.layers,
        "unit": counts.shape.unit,
        "floor": counts.floor,
        "d_model": counts.d_model,
        "whole_layers": counts.whole_layers,
        "whole_positions": list(counts.whole_positions),
        "least_layers": counts.least_layers,
        "least_positions": counts.least_positions,
        **packed(counts.streams),
    }


def read_edge_counts(path: Path) -> dict[CountShape, StoredCounts]:
    """The counts of a file, by shape.

    Raises:
        StudyError: If it cannot be read or is of another format.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise StudyError(
            "A model's counts at every edge cannot be read.",
            file=path,
            got=str(error),
            remedy=f"Remove it, if it is there, and run: snakemake {path}",
        ) from error
    if document.get("format") != FORMAT:
        raise StudyError(
            "A model's counts at every edge have another format.",
            file=path,
            key="format",
            expected=FORMAT,
            got=document.get("format"),
            remedy=f"Remove it and run: snakemake {path}",
        )
    return {counts.shape: counts for counts in map(_stored, document["shapes"].values())}


def _stored(document: dict[str, Any]) -> StoredCounts:
    return StoredCounts(
        shape=CountShape(document["view"], document["layers"], document["unit"]),
        floor=document["floor"],
        d_model=document["d_model"],
        whole_layers=document["whole_layers"],
        whole_positions=(document["whole_positions"][0], document["whole_positions"][1]),
        least_layers=document["least_layers"],
        least_positions=document["least_positions"],
        streams=unpacked(document),
    )
