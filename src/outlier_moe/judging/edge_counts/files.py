"""One JSON file a model with its counts at every edge, which the report takes in as it is."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from outlier_moe.definitions.presets import CountShape
from outlier_moe.errors import StudyError
from outlier_moe.judging.edge_counts.coding import StoredCounts, encode_counts, packed, unpacked
from outlier_moe.judging.edge_counts.counting import count_at_edges
from outlier_moe.tables.files import made_again
from outlier_moe.tables.recording import Recording

FORMAT = 1
"""Version of the file; raised when an older reader would misread it."""

CHECKSUM = "crc32"
"""The key that has the CRC-32 of all the others."""


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
            encode_counts(count_at_edges(recording, shape, least_layers=least_layers, least_positions=least_positions))
        )
        for shape in dict.fromkeys(shapes)
    }
    document = {"format": FORMAT, "shapes": counted}
    path.write_text(json.dumps({**document, CHECKSUM: _crc(document)}, separators=(",", ":")) + "\n")


def _crc(document: dict[str, Any]) -> str:
    """The CRC-32 of a document as it is written."""
    return f"{zlib.crc32(json.dumps(document, separators=(',', ':')).encode()):08x}"


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
        # A file of an earlier version has none.
        expected = document.pop(CHECKSUM, None)
        if odd := document.keys() - {"format", "shapes"}:
            raise ValueError(f"it has a key that is not known: {', '.join(odd)}")
        if expected is not None and expected != _crc(document):
            raise ValueError(f"its {CHECKSUM} is {_crc(document)}, and was {expected} when it was written")
        return _all_stored(document, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise StudyError(
            "A model's counts at every edge cannot be read.",
            file=path,
            expected="counts as they were written",
            got=str(error),
            remedy=made_again(path),
        ) from error


def _all_stored(document: dict[str, Any], path: Path) -> dict[CountShape, StoredCounts]:
    if document.get("format") != FORMAT:
        raise StudyError(
            "A model's counts at every edge have another format.",
            file=path,
            key="format",
            expected=FORMAT,
            got=document.get("format"),
            remedy=made_again(path),
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
