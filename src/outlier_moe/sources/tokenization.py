"""The tokenize stage: a text and a tokenizer in, the study's sequences of tokens out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from dataframely.exc import SchemaError, ValidationError
from filelock import FileLock
from jaxtyping import UInt32

from outlier_moe.architectures.positions import model_length
from outlier_moe.errors import StudyError
from outlier_moe.sources.corpora import Corpus, read_corpus
from outlier_moe.sources.origin import read_origin
from outlier_moe.sources.study_tokenizer import StudyTokenizer, load_tokenizer
from outlier_moe.tables import schemas
from outlier_moe.tables.files import check_table, schema_facts, seal, with_facts
from outlier_moe.tables.whole_outputs import whole_file

log = logging.getLogger(__name__)

Bos = Literal["tokenizer", "always", "never"]

DOCUMENTS_PER_BATCH = 16


class TokenTable(NamedTuple):
    """The study's text as tokens."""

    tokens: UInt32[np.ndarray, "sequence position"]
    """The tokens."""
    metadata: dict[str, Any]
    """What they were made from: `corpus_sha256`, `tokenizer_sha256`, the options, and `tokens_sha256`."""


class TokenStream(NamedTuple):
    """The beginning of a text as one stream of tokens."""

    tokens: UInt32[np.ndarray, " token"]
    """Documents, each with the end-of-text token behind it."""
    n_documents: int
    """The documents they come from."""


@dataclass(frozen=True)
class Layout:
    """The shape of the sequences."""

    n_sequences: int
    """Number of sequences."""
    sequence_length: int
    """Tokens in a sequence, BOS included."""
    bos_token: int | None
    """What each sequence starts with; None for nothing."""

    @property
    def n_from_text(self) -> int:
        """Tokens of a sequence that come from the text."""
        return self.sequence_length - (self.bos_token is not None)

    @property
    def n_needed(self) -> int:
        """Tokens of the text that all sequences take."""
        return self.n_sequences * self.n_from_text


def tokenize_corpus(
    corpus: Path,
    model_directory: Path,
    output: Path,
    *,
    n_sequences: int,
    sequence_length: int,
    bos: Bos,
    shortens: bool = False,
    cache: Path | None = None,
) -> None:
    """Write a text as a model's tokens, `n_sequences` x `sequence_length` of them.

    Each document is tokenised by itself and without special tokens, and the end-of-text token set behind it; these are
    joined in order and cut. With BOS each sequence is BOS and `sequence_length - 1` tokens of the stream. Where a
    document spells a special token out it is that token, as it is for transformers.

    Args:
        corpus: What `fetch_corpus` wrote.
        model_directory: What `fetch_model` wrote.
        output: The Arrow file to write; it appears when it is whole.
        n_sequences: Number of sequences.
        sequence_length: Tokens in a sequence, BOS included.
        bos: Whether each sequence starts with BOS: `tokenizer` if the tokenizer adds it by itself.
        shortens: Whether sequences are shortened to what the model was made for, if it was made for less.
        cache: A folder in which models with the same tokenizer find each other's tokens.

    Raises:
        StudyError: If the text is too short, the model has no positions for so long a sequence, or the tokenizer lacks
            a token that is asked for or has one that the model does not know.
    """
    text = read_corpus(corpus)
    tokenizer = load_tokenizer(model_directory)
    origin = read_origin(model_directory)
    length = model_length(
        model_directory,
        sequence_length,
        model=origin.model,
        shortens=shortens,
        trust_remote_code=origin.trust_remote_code,
    )
    layout = Layout(n_sequences, length.n_tokens, bos_token(tokenizer, bos, model_directory))
    table = tokenized(text, tokenizer, layout, bos=bos, corpus=corpus, model_directory=model_directory, cache=cache)
    made_by = {"asked_length": sequence_length} if length.n_tokens < sequence_length else {}
    if length.note is not None:
        made_by |= {"length_note": length.note}
        log.warning("%s: %s", origin.model, length.note)
    write_tokens(table._replace(metadata={**table.metadata, **made_by}), output)


def tokenized(
    text: Corpus,
    tokenizer: StudyTokenizer,
    layout: Layout,
    *,
    bos: Bos,
    corpus: Path | str,
    model_directory: Path,
    cache: Path | None = None,
) -> TokenTable:
    """A text as tokens, and what they were made from.

    Args:
        text: The text.
        tokenizer: The model's tokenizer.
        layout: The shape of the sequences.
        bos: What was asked of their start.
        corpus: How to name the text in a message.
        model_directory: How to name the model in a message.
        cache: A folder in which models with the same tokenizer find each other's tokens.

    Raises:
        StudyError: If the text is too short, or has a token that the model does not know.
    """
    metadata = {
        "corpus_sha256": text.metadata["corpus_sha256"],
        "tokenizer_sha256": tokenizer.sha256,
        "n_sequences": layout.n_sequences,
        "sequence_length": layout.sequence_length,
        "bos": bos,
        "bos_token": layout.bos_token,
        "end_of_text_token": tokenizer.end_of_text,
        "versions": {name: version(name) for name in ("transformers", "tokenizers")},
    }
    table = _from_cache_or(lambda: _tokenized(text, tokenizer, layout, metadata, corpus), metadata, cache)
    _refuse_unknown_tokens(table, tokenizer, model_directory)
    # Not in the cache: another model may have the same tokenizer without a need for its own file's.
    made_by = {"tokenizer": tokenizer.kind, "tokenizer_note": tokenizer.note}
    return table._replace(metadata={**table.metadata, **made_by})


def _from_cache_or(make: Callable[[], TokenTable], metadata: dict[str, Any], cache: Path | None) -> TokenTable:
    """The tokens that another model's tokenisation left in the cache; else they are made, and left there."""
    if cache is None:
        return make()
    cached = cache / f"{hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:32]}.arrow"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix(".lock")):
        if cached.exists():
            try:
                return read_tokens(cached)
            except StudyError as error:
                log.warning("The cached tokens are made anew: %s", error)
        table = make()
        write_tokens(table, cached)
    return table


def bos_token(tokenizer: StudyTokenizer, bos: Bos, model_directory: Path) -> int | None:
    """What each sequence starts with; None for nothing.

    Raises:
        StudyError: If BOS is asked of a tokenizer that has none.
    """
    if bos == "never" or (bos == "tokenizer" and not tokenizer.adds_bos):
        return None
    if tokenizer.bos is None:
        raise StudyError(
            "A tokenizer has no BOS token.",
            file=model_directory,
            key="tokenize_corpus.bos",
            expected="tokenizer or never, for this model",
            got=bos,
        )
    return tokenizer.bos


def _tokenized(
    text: Corpus, tokenizer: StudyTokenizer, layout: Layout, metadata: dict[str, Any], corpus: Path | str
) -> TokenTable:
    stream = token_stream(text.documents, tokenizer, n_needed=layout.n_needed)
    if len(stream.tokens) < layout.n_needed:
        raise _too_short(text, layout, len(stream.tokens), corpus)
    rows = stream.tokens[: layout.n_needed].reshape(layout.n_sequences, layout.n_from_text)
    if layout.bos_token is not None:
        first = np.full((layout.n_sequences, 1), layout.bos_token, dtype=np.uint32)
        rows = np.concatenate([first, rows], axis=1)
    made = {
        **metadata,
        "n_documents": stream.n_documents,
        "tokens_sha256": tokens_sha256(rows),
        "corpus": text.metadata,
    }
    return TokenTable(rows, made)


def token_stream(documents: Sequence[str], tokenizer: StudyTokenizer, *, n_needed: int) -> TokenStream:
    """The stream of the first documents that make up `n_needed` tokens, or of all if they do not."""
    pieces: list[np.ndarray] = []
    n_tokens = 0
    for first in range(0, len(documents), DOCUMENTS_PER_BATCH):
        for tokens in tokenizer.tokenize(documents[first : first + DOCUMENTS_PER_BATCH]):
            pieces.append(np.array([*tokens, tokenizer.end_of_text], dtype=np.uint32))
            n_tokens += len(pieces[-1])
            if n_tokens >= n_needed:
                return TokenStream(np.concatenate(pieces), len(pieces))
    return TokenStream(np.concatenate([np.empty(0, np.uint32), *pieces]), len(pieces))


def _too_short(text: Corpus, layout: Layout, n_available: int, corpus: Path | str) -> StudyError:
    fits = n_available // layout.n_from_text
    fewer = f"lower tokenize_corpus.n_sequences to {fits}" if fits else "lower tokenize_corpus.sequence_length"
    more = (
        "Raise the corpus' max_characters" if text.metadata["is_cut"] else "Take a longer corpus (this one is all used)"
    )
    return StudyError(
        "A corpus is too short.",
        file=corpus,
        expected=f"{layout.n_needed} tokens, {layout.n_from_text} for each of {layout.n_sequences} sequences",
        got=f"{n_available} tokens in {len(text.documents)} documents",
        remedy=f"{more}, or {fewer}.",
    )


def _refuse_unknown_tokens(table: TokenTable, tokenizer: StudyTokenizer, model_directory: Path) -> None:
    largest = int(table.tokens.max())
    if tokenizer.vocab_size is not None and largest >= tokenizer.vocab_size:
        raise StudyError(
            "A tokenizer does not match its model.",
            file=model_directory / "config.json",
            key="vocab_size",
            expected=f"more than {largest}, the largest token of the text",
            got=tokenizer.vocab_size,
            remedy="The tokenizer files and config.json belong to different models; fetch them from one.",
        )


def tokens_sha256(tokens: UInt32[np.ndarray, "sequence position"]) -> str:
    """The SHA-256 of tokens as little-endian 32-bit numbers, one sequence after the other."""
    return hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()


def write_tokens(table: TokenTable, path: Path) -> None:
    """Write tokens as an Arrow file, which appears when it is whole."""
    n_sequences, sequence_length = table.tokens.shape
    sequence, position = np.indices(table.tokens.shape, dtype=np.uint16).reshape(2, -1)
    frame = pl.DataFrame({"sequence": sequence, "position": position, "token": table.tokens.reshape(-1)})
    rows = schemas.Token.validate(frame).to_arrow()
    rows = rows.cast(with_facts(rows.schema, table.metadata))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with whole_file(path) as partial:
        with pa.ipc.new_file(partial, rows.schema, options=options) as writer:
            writer.write_table(rows)
        seal(partial)


def read_tokens(path: Path) -> TokenTable:
    """The tokens of an Arrow file.

    Raises:
        StudyError: If the file is missing, truncated or damaged, or was changed since it was written.
    """
    remedy = "Remove the file and tokenise the corpus again."
    try:
        check_table(path, remedy=remedy)
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            metadata = schema_facts(reader.schema)
            rows = reader.read_all()
        frame = schemas.Token.validate(pl.DataFrame(rows))
        shape = (metadata["n_sequences"], metadata["sequence_length"])
        tokens = frame["token"].to_numpy().reshape(shape)
        sequence, position = np.indices(shape).reshape(2, -1)
        if not np.array_equal(frame["sequence"], sequence) or not np.array_equal(frame["position"], position):
            raise ValueError("rows are not in the order of sequence and position")
        if tokens_sha256(tokens) != metadata["tokens_sha256"]:
            raise ValueError("tokens of another SHA-256 than the file says")
    except (OSError, pa.ArrowException, ValidationError, SchemaError, KeyError, ValueError) as error:
        raise StudyError(
            "A file of tokens cannot be read.",
            file=path,
            expected="the whole Arrow file that tokenize_corpus writes",
            got=f"{type(error).__name__}: {error}",
            remedy=remedy,
        ) from error
    return TokenTable(tokens, metadata)
