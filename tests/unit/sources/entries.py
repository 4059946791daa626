"""Entries of the registry, for tests of what they lead to."""

from __future__ import annotations

from typing import Any

from outlier_moe.registry import CorpusEntry, CorpusSource, ModelEntry, ModelSource


def model_entry(source: ModelSource | None, **keys: Any) -> ModelEntry:
    """A model from a source, of which nothing is said."""
    defaults: dict[str, Any] = {
        "id": "tiny-0.1b",
        "family": None,
        "kind": None,
        "total_params_b": None,
        "active_params_b": None,
        "n_experts": None,
        "top_k": None,
        "n_shared_experts": None,
        "routing": None,
        "checkpoint_format": None,
        "gated": False,
        "corpus": "text",
        "trust_remote_code": False,
        "sweeps": ("demo",),
        "unavailable": None,
        "release_date": None,
    }
    return ModelEntry(source=source, **{**defaults, **keys})


def corpus_entry(source: CorpusSource, max_characters: int = 1000) -> CorpusEntry:
    """A text from a source."""
    return CorpusEntry(id="text", source=source, max_characters=max_characters)
