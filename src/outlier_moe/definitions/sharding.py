"""Sequences recorded in parts, each by a job of its own. The workflow reads it: no tables.

A part's recording numbers its sequences from 0, and says in run.json which they are of the study's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outlier_moe.errors import StudyError


class Shard(NamedTuple):
    """One part of the sequences."""

    number: int = 0
    """Number of this part, from 0."""
    n_shards: int = 1
    """Number of parts."""

    def sequences(self, n_sequences: int) -> range:
        """The sequences of this part; parts differ in size by one at most.

        Raises:
            StudyError: If there are fewer sequences than parts.
        """
        if self.n_shards > n_sequences:
            raise StudyError(
                "There are more shards than sequences.",
                key="record_outliers.shards",
                expected=f"at most {n_sequences}",
                got=self.n_shards,
            )
        first, stop = (n_sequences * i // self.n_shards for i in (self.number, self.number + 1))
        return range(first, stop)


WHOLE = Shard()


def shards_to_record(outliers: Path, tokens: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """The number of parts of a model's recording: the study's, or that of tables that are there already.

    Such tables keep their number, so that another number of shards, which changes no figure, records nothing again.

    Args:
        outliers: The folder of the model's recording, which need not exist.
        tokens: The study's `tokenize_corpus` for this model.
        options: The study's `record_outliers`.
    """
    wanted = min(options["shards"], tokens["n_sequences"])
    try:
        run = json.loads((outliers / "run.json").read_text())
        # Of a model whose sequences are shorter than the study's, what the study asked for then.
        length = run.get("tokens", {}).get("asked_length") or run["sequence_length"]
        recorded = [run["n_sequences"], length, run["taps"], run["floor"]]
        n_recorded = len(run.get("shards", [])) or 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return wanted
    asked = [tokens["n_sequences"], tokens["sequence_length"], list(options["taps"]), options["floor"]]
    return n_recorded if recorded == asked else wanted
