"""Whether a recording that is kept will be taken up, told before any job runs: then no node is started for it.

The tokens of a text that the study goes back to may not be there yet. So a text counts as that of a kept recording if
it is cut from the same source in the same way; text files of this machine are read, as they may have changed. A guess
that was wrong is an error of the take-up, which records nothing. By then the tokens are there, and the next run knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from outlier_moe.config.registry import CorpusEntry, FilesSource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.machine.stages import read_note
from outlier_moe.recording.kept_recordings import MADE_FROM, RUN, KeptRecordings, made_from
from outlier_moe.sources.corpora import read_text
from outlier_moe.tables.files import schema_facts


class AskedTokens(NamedTuple):
    """The tokens that a study asks for."""

    corpus: CorpusEntry
    """Their text."""
    n_sequences: int
    """How many sequences."""
    sequence_length: int
    """Tokens of each, before a model with fewer positions shortens them."""
    bos: str
    """What was asked of their start."""


def will_take_up(
    kept: KeptRecordings, model_directory: Path, tokens_path: Path, asked: AskedTokens, options: RecordOptions
) -> bool:
    """Whether a model's recording of what a study asks for is kept.

    Args:
        kept: The model's recordings.
        model_directory: What `fetch_model` wrote, if it has run.
        tokens_path: What `tokenize_corpus` wrote, if it has run; maybe of another text.
        asked: The tokens that are asked for.
        options: What is to be recorded.
    """
    notes = {note.with_suffix(""): read_note(note).get(MADE_FROM) for note in kept.folder.glob("*.json")}
    try:
        same = {
            made["tokens"]: folder
            for folder, made in notes.items()
            if made and made == _wanted(kept, model_directory, made["tokens"], options)
        }
        if not same:
            return False
        text_sha256 = _text_sha256(asked.corpus)
        now = _facts_of(tokens_path)
        if now and _is_of(now, asked, text_sha256):
            return now["tokens_sha256"] in same
        return any(_is_of(read_note(folder / RUN).get("tokens", {}), asked, text_sha256) for folder in same.values())
    except (StudyError, OSError, KeyError):
        return False


def _wanted(kept: KeptRecordings, model_directory: Path, tokens: str, options: RecordOptions) -> dict[str, Any]:
    """What a whole recording of some tokens would be made from."""
    told = {"tokens_sha256": tokens}
    return {
        **made_from(model_directory, told, options, revision=kept.revision, digests=kept.digests),
        "shard": None,
    }


def _text_sha256(corpus: CorpusEntry) -> str | None:
    """The SHA-256 of a text in this machine's files; None of any other."""
    return read_text(corpus).metadata["corpus_sha256"] if isinstance(corpus.source, FilesSource) else None


def _is_of(tokens: Mapping[str, Any], asked: AskedTokens, text_sha256: str | None) -> bool:
    """Whether tokens are those that are asked for, by what they say of themselves."""
    shape = (tokens.get("n_sequences"), tokens.get("asked_length") or tokens.get("sequence_length"))
    if (*shape, tokens.get("bos")) != asked[1:]:
        return False
    if text_sha256 is not None:
        return tokens.get("corpus_sha256") == text_sha256
    source = {"kind": asked.corpus.source.kind, **asdict(asked.corpus.source)}
    # A branch's name here, the commit there.
    source.pop("revision", None)
    described = json.loads(json.dumps({**source, "max_characters": asked.corpus.max_characters}, default=str))
    text = tokens.get("corpus") or {}
    return all(text.get(key) == value for key, value in described.items())


def _facts_of(tokens_path: Path) -> dict[str, Any]:
    """What a file of tokens says of itself; nothing if it is not there or damaged."""
    try:
        with pa.OSFile(str(tokens_path)) as file, pa.ipc.open_file(file) as reader:
            return schema_facts(reader.schema)
    except (OSError, pa.ArrowException, ValueError):
        return {}
