"""What a person gives to record a model on: ids of tokens, texts, or nothing; checked, as one table of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from outlier_moe.architectures.lengths import KEY, Length
from outlier_moe.architectures.positions import model_length
from outlier_moe.config.registry import CorpusEntry, ModelEntry, PydocTopicsSource
from outlier_moe.definitions.record_options import N_SEQUENCES, SEQUENCE_LENGTH
from outlier_moe.errors import StudyError
from outlier_moe.sources.corpora import Corpus, documents_sha256, read_text
from outlier_moe.sources.study_tokenizer import StudyTokenizer, load_tokenizer
from outlier_moe.sources.tokenization import Bos, Layout, TokenTable, bos_token, token_stream, tokenized, tokens_sha256

log = logging.getLogger(__name__)

EMBEDDED = CorpusEntry("pydoc-topics", PydocTopicsSource(), max_characters=400_000)
"""The text that comes with Python: what is recorded on if nothing is given."""
MOST = 2**16 - 1
"""Sequences, and positions of one: tables keep them as 16-bit numbers."""


class Shape(NamedTuple):
    """The sequences that are asked for; None where nobody says."""

    n_sequences: int | None = None
    """How many."""
    sequence_length: int | None = None
    """Tokens of each."""
    bos: Bos = "tokenizer"
    """Whether each starts with BOS."""


class Reader(NamedTuple):
    """What of a model decides which tokens it can be given."""

    name: str
    """How to name it in messages."""
    place: Path
    """Where its files lie, for messages."""
    vocabulary: int | None
    """Tokens that it knows, where known."""
    tokenizer: Callable[[], StudyTokenizer]
    """Opens its tokenizer."""
    length: Callable[[int, bool], Length]
    """The length of its sequences, from the one asked for and whether it may be shortened to the model's own."""


def fetched_reader(entry: ModelEntry, folder: Path) -> Reader:
    """What decides which tokens a fetched model can be given."""
    tokenizer = cache(lambda: load_tokenizer(folder))

    def length(asked: int, shortens: bool) -> Length:
        return model_length(folder, asked, model=entry.id, shortens=shortens, trust_remote_code=entry.trust_remote_code)

    return Reader(entry.id, folder, tokenizer().vocab_size, tokenizer, length)


def given_tokens(tokens: Any, reader: Reader, shape: Shape) -> TokenTable:
    """The tokens of whatever was given.

    Args:
        tokens: Ids (one or two dimensions), a text or several, where to read one, or None for the embedded text.
        reader: The model.
        shape: The sequences that are asked for.

    Raises:
        StudyError: If they are no ids of the model's tokens, of no even length, or too little text.
    """
    _refuse_shape(shape)
    if tokens is None:
        tokens = EMBEDDED
    if isinstance(tokens, CorpusEntry):
        return _of_text(read_text(tokens), reader, shape)
    if isinstance(tokens, str):
        tokens = [tokens]
    if isinstance(tokens, Mapping):
        tokens = _unpadded(tokens)
    if not isinstance(tokens, np.ndarray | torch.Tensor):
        tokens = _listed(tokens)
    if isinstance(tokens, list):
        return _of_text(_corpus(tokens), reader, shape)
    return _of_ids(tokens, reader, shape)


def _refuse_shape(shape: Shape) -> None:
    for key, least in (("n_sequences", 1), ("sequence_length", 2)):
        value = getattr(shape, key)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value is not None and not (is_whole and least <= value <= MOST):
            raise StudyError(
                "Sequences of that kind cannot be recorded.",
                key=key,
                expected=f"a whole number from {least} to {MOST}",
                got=repr(value),
            )
    if shape.bos not in ("tokenizer", "always", "never"):
        raise StudyError("BOS has no such setting.", key="bos", expected="tokenizer, always or never", got=shape.bos)


def _unpadded(encoded: Mapping[str, Any]) -> Any:
    """The ids of what a tokenizer gives, if none of them is padding."""
    if "input_ids" not in encoded:
        raise _no_tokens(f"a mapping of {', '.join(map(str, encoded)) or 'nothing'}")
    mask = encoded.get("attention_mask")
    if mask is not None and not np.asarray(_listed(mask) if isinstance(mask, list) else mask).all():
        raise StudyError(
            "Some of the tokens are padding, whose activations would be counted.",
            key="attention_mask",
            expected="ones alone",
            got="zeros among them",
            remedy="Give the texts themselves, which are joined and cut, or sequences of one length.",
        )
    return encoded["input_ids"]


def _listed(tokens: Any) -> np.ndarray | list[str]:
    """Ids as an array, or texts as a list, of what can be gone through."""
    if isinstance(tokens, bytes) or not isinstance(tokens, Iterable):
        raise _no_tokens(type(tokens).__name__)
    members = list(tokens)
    if members and all(isinstance(member, str) for member in members):
        return members
    if not members:
        raise _no_tokens("nothing")
    if all(isinstance(member, torch.Tensor | np.ndarray) for member in members):
        members = [member.tolist() for member in members]
    try:
        return np.asarray(members)
    except ValueError as error:
        lengths = sorted({len(member) if hasattr(member, "__len__") else 1 for member in members})
        raise StudyError(
            "The sequences of tokens have several lengths.",
            key="tokens",
            expected="sequences of one length",
            got=", ".join(map(str, lengths[:6])),
            remedy="Cut them to the shortest, or give the texts themselves, which are joined and cut.",
        ) from error


def _no_tokens(got: str) -> StudyError:
    return StudyError(
        "There is nothing in this that a model can be run on.",
        key="tokens",
        expected="ids of tokens (one or two dimensions), a text, a list of texts, or None for the embedded text",
        got=got,
    )


def _of_ids(tokens: np.ndarray | torch.Tensor, reader: Reader, shape: Shape) -> TokenTable:
    ids = tokens.detach().cpu().numpy() if isinstance(tokens, torch.Tensor) else tokens
    if ids.dtype.kind not in "iu":
        raise StudyError(
            "Ids of tokens are whole numbers.",
            key="tokens",
            expected="an array of integers",
            got=f"an array of {ids.dtype}",
            remedy="Give the ids that a tokenizer gives, or the texts themselves.",
        )
    ids = _sequences(ids, shape)
    _refuse_unknown(ids, reader)
    rows = np.ascontiguousarray(ids.astype(np.uint32))
    length = _length(reader, rows.shape[1], shortens=False)
    sha256 = tokens_sha256(rows)
    told = {} if length.note is None else {"length_note": length.note}
    return TokenTable(
        rows,
        {
            # Ids are their own text: recordings of the same ones may be compared.
            "corpus_sha256": sha256,
            "tokens_sha256": sha256,
            "n_sequences": rows.shape[0],
            "sequence_length": rows.shape[1],
            **told,
        },
    )


def _sequences(ids: np.ndarray, shape: Shape) -> np.ndarray:
    """Ids as sequences: one dimension is one sequence, or is cut into several of the length asked for."""
    if ids.ndim == 1:
        length = shape.sequence_length or len(ids)
        n_sequences = min(len(ids) // max(length, 1), shape.n_sequences or MOST)
        ids = ids[: n_sequences * length].reshape(n_sequences, length) if n_sequences else ids[None]
        if shape.n_sequences not in (None, n_sequences):
            raise _wrong_shape(ids, f"{shape.n_sequences} sequences of {length} tokens")
    elif ids.ndim == 2:
        asked = (shape.n_sequences, shape.sequence_length)
        if any(want is not None and want != have for want, have in zip(asked, ids.shape, strict=True)):
            raise _wrong_shape(ids, f"{asked[0] or 'some'} sequences of {asked[1] or 'some'} tokens, as asked for")
    if ids.ndim != 2 or not (1 <= ids.shape[0] <= MOST and 2 <= ids.shape[1] <= MOST):
        raise _wrong_shape(ids, f"1 to {MOST} sequences of 2 to {MOST} tokens")
    return ids


def _wrong_shape(ids: np.ndarray, expected: str) -> StudyError:
    return StudyError(
        "The tokens do not have the shape of sequences.",
        key="tokens",
        expected=expected,
        got=f"an array of shape {ids.shape}",
        remedy="Give [sequence, position], or one dimension and `sequence_length=`, by which it is cut.",
    )


def _refuse_unknown(ids: np.ndarray, reader: Reader) -> None:
    least, most = int(ids.min()), int(ids.max())
    last = 2**32 - 1 if reader.vocabulary is None else reader.vocabulary - 1
    if least < 0 or most > last:
        wrong = least if least < 0 else most
        sequence, position = (int(index[0]) for index in np.nonzero(ids == wrong))
        raise StudyError(
            f"{reader.name} has no such token.",
            key=f"tokens[{sequence}, {position}]",
            expected=f"ids from 0 to {last}",
            got=wrong,
            remedy="Take the ids of this model's own tokenizer; -100 and other marks of labels are none.",
        )


def _corpus(texts: list[str]) -> Corpus:
    """Texts as a corpus; those without a visible character are left out."""
    documents = [text for text in texts if text.strip()]
    if not documents:
        raise StudyError(
            "The texts are empty.",
            key="tokens",
            expected="a text with a visible character",
            got=f"{len(texts)} without",
        )
    return Corpus(
        documents,
        {
            "corpus": None,
            "kind": "texts",
            "is_cut": False,
            "n_documents": len(documents),
            "n_characters": sum(map(len, documents)),
            "corpus_sha256": documents_sha256(documents, key="tokens"),
        },
    )


def _of_text(text: Corpus, reader: Reader, shape: Shape) -> TokenTable:
    tokenizer = reader.tokenizer()
    length = _length(reader, shape.sequence_length or SEQUENCE_LENGTH, shortens=shape.sequence_length is None)
    layout = Layout(shape.n_sequences or N_SEQUENCES, length.n_tokens, bos_token(tokenizer, shape.bos, reader.place))
    n_available = len(token_stream(text.documents, tokenizer, n_needed=layout.n_needed).tokens)
    n_sequences = min(layout.n_sequences, n_available // layout.n_from_text)
    if n_sequences < (shape.n_sequences or 1):
        raise _too_short(layout, n_available, n_least=shape.n_sequences or 1)
    layout = Layout(n_sequences, layout.sequence_length, layout.bos_token)
    name = str(text.metadata["corpus"] or "the texts")
    table = tokenized(text, tokenizer, layout, bos=shape.bos, corpus=name, model_directory=reader.place)
    return table if length.note is None else table._replace(metadata={**table.metadata, "length_note": length.note})


def _length(reader: Reader, asked: int, *, shortens: bool) -> Length:
    """The length of the sequences; a note is left for one that somebody asked for."""
    try:
        length = reader.length(asked, shortens)
    except StudyError as error:
        if error.key == KEY:
            error.key, error.remedy = "sequence_length", f"Take shorter sequences: {error.expected}."
        raise
    if length.note is not None and not shortens:
        log.warning("%s: %s", reader.name, length.note)
    return Length(length.n_tokens, None if shortens else length.note)


def _too_short(layout: Layout, n_available: int, *, n_least: int) -> StudyError:
    n_special = layout.sequence_length - layout.n_from_text
    shorter = n_available // n_least + n_special
    fewer = n_available // layout.n_from_text
    ways = ["give more text"]
    if fewer:
        ways.append(f"ask for {fewer} sequences")
    if shorter >= 2:
        ways.append(f"for sequences of {shorter} tokens")
    return StudyError(
        "The text is too short.",
        key="tokens",
        expected=f"{n_least * layout.n_from_text} tokens, for {n_least} sequences of {layout.sequence_length}",
        got=f"{n_available} tokens",
        remedy=f"{', or '.join(ways).capitalize()}.",
    )
