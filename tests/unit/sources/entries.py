"""Entries of the registry, for tests of what they lead to."""

from __future__ import annotations

from typing import Any

from outlier_moe.config.registry import CorpusEntry, CorpusSource, ModelEntry, ModelSource


def model_entry(source: ModelSource | None, **keys: Any) -> ModelEntry:
    """A model from a source, of which nothing is said."""
    defaults: dict[str, Any] = {"id": "tiny-0.1b", "corpus": "text", "sweeps": ("demo",)}
    return ModelEntry(source=source, **{**defaults, **keys})


def corpus_entry(source: CorpusSource, max_characters: int = 1000) -> CorpusEntry:
    """A text from a source."""
    return CorpusEntry(id="text", source=source, max_characters=max_characters)
