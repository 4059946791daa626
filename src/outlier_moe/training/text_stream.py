"""Text for training: a tokenizer, one stream of tokens on disk, and a part that is never trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import small_files
from outlier_moe.sources.corpora import documents_sha256, read_corpus
from outlier_moe.sources.hub import download, resolve_model
from outlier_moe.sources.tokenizer_files import open_tokenizer
from outlier_moe.tables import schemas
from outlier_moe.tables.files import write_table
from outlier_moe.tables.whole_outputs import whole_directory
from outlier_moe.training.steps import Batch, BatchSource

END_OF_TEXT = "<|endoftext|>"
BYTE_PAIRS = "bpe"
HELD_OUT_CORPUS = "held_out.parquet"
FACTS = "text.json"


@dataclass(frozen=True)
class TextOptions:
    """How a text becomes a stream of tokens. The keys of messages are those below `key`."""

    vocab_size: int
    """Tokens of the tokenizer."""
    sequence_length: int
    """Tokens of a training window."""
    tokenizer: str = BYTE_PAIRS
    """`bpe`: byte pairs, learnt from the text that is trained on; else a repository of the hub."""
    held_out_fraction: float = 0.1
    """Share of the documents that is never trained on."""
    n_documents: int | None = None
    """Documents that are taken from the text's start; None for all."""
    seed: int = 0
    """Decides which documents are held out."""


def tokenize_training_text(corpus: Path, output: Path, options: TextOptions, *, key: str = "upcycle") -> None:
    """Write a folder with tokenizer, `train.npy`, `held_out.npy` (memory-mapped), the held-out text and what it is.

    Args:
        corpus: What `fetch_corpus` wrote.
        output: The folder; it appears when it is whole.
        options: How.
        key: The section of the configuration that the options are from, for messages.

    Raises:
        StudyError: If the text is shorter than a window, the vocabulary is not of the size asked for, or the hub does
            not give the tokenizer.
    """
    text = read_corpus(corpus)
    documents = text.documents[: options.n_documents]
    held_out = _held_out(len(documents), options)
    parts = {
        "train": [document for index, document in enumerate(documents) if index not in held_out],
        "held_out": [documents[index] for index in sorted(held_out)],
    }
    tokenizer, commit = _tokenizer(parts["train"], options, key=key)
    with whole_directory(output) as partial:
        tokenizer.save_pretrained(partial / "tokenizer")
        facts: dict[str, Any] = {
            "corpus_sha256": documents_sha256(documents),
            "tokenizer": options.tokenizer,
            "tokenizer_commit": commit,
            "vocab_size": len(tokenizer),
        }
        for name, of_part in parts.items():
            stream = _stream(of_part, tokenizer)
            _refuse_short(stream, options, part=name, corpus=corpus, key=key)
            np.save(partial / f"{name}.npy", stream)
            facts |= {f"n_{name}_documents": len(of_part), f"n_{name}_tokens": len(stream)}
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        _write_corpus(parts["held_out"], partial / HELD_OUT_CORPUS, text.metadata)


def _held_out(n_documents: int, options: TextOptions) -> set[int]:
    n_held_out = min(max(1, round(options.held_out_fraction * n_documents)), n_documents - 1)
    chosen = np.random.default_rng(options.seed).choice(n_documents, size=max(n_held_out, 0), replace=False)
    return set(chosen.tolist())


def _tokenizer(
    documents: Sequence[str], options: TextOptions, *, key: str
) -> tuple[PreTrainedTokenizerBase, str | None]:
    """The tokenizer, and the commit that it is of if it comes from the hub."""
    tokenizer, commit = (
        (_learnt_byte_pairs(documents, options.vocab_size), None)
        if options.tokenizer == BYTE_PAIRS
        else _from_hub(options.tokenizer, key=f"{key}.text.tokenizer")
    )
    if len(tokenizer) != options.vocab_size:
        raise StudyError(
            "The tokenizer has another number of tokens than the model is to know.",
            key=f"{key}.model.vocab_size",
            expected=f"{len(tokenizer)}, the tokens of {options.tokenizer}"
            + (" that this text gives at most" if options.tokenizer == BYTE_PAIRS else ""),
            got=options.vocab_size,
            remedy="Set the key to that number, or take another tokenizer or a longer text.",
        )
    return tokenizer, commit


def _from_hub(repo: str, *, key: str) -> tuple[PreTrainedTokenizerBase, str]:
    try:
        snapshot = resolve_model(repo, "main", key=key)
        folder = download(repo, snapshot.commit, small_files([file.name for file in snapshot.files]), key=key)
    except StudyError as error:
        # A source of the registry has a key for its repository.
        error.key = key
        raise
    tokenizer = open_tokenizer(folder).tokenizer
    if tokenizer.eos_token_id is None:
        raise StudyError(
            "A tokenizer has no token for the end of a text.",
            file=f"{repo} at {snapshot.commit}",
            key=key,
            expected="an eos_token, which stands between the documents of the stream",
            remedy="Take another tokenizer, or bpe.",
        )
    return tokenizer, snapshot.commit


def _learnt_byte_pairs(documents: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def _stream(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    documents = list(documents)
    if not documents:
        return np.empty(0, np.uint32)
    encoded = tokenizer(documents, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    end = int(tokenizer.eos_token_id)  # type: ignore[arg-type]
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    return np.concatenate([np.array([*tokens, end], dtype=dtype) for tokens in encoded])


def _refuse_short(stream: np.ndarray, options: TextOptions, *, part: str, corpus: Path, key: str) -> None:
    if len(stream) < options.sequence_length:
        raise StudyError(
            f"A corpus is shorter than one window ({part.replace('_', '-')} part).",
            file=corpus,
            key=f"{key}.model.sequence_length",
            expected=f"at most {len(stream)}, the tokens of that part",
            got=options.sequence_length,
            remedy="Take a longer text or shorter sequences.",
        )


def _write_corpus(documents: Sequence[str], path: Path, metadata: dict[str, Any]) -> None:
    rows = pl.DataFrame({"document": range(len(documents)), "text": documents})
    own = {"n_documents": len(documents), "is_cut": False, "corpus_sha256": documents_sha256(documents)}
    write_table(schemas.Document.validate(rows, cast=True), path, {**metadata, **own, "part": "held-out"})


def token_windows(stream: Path, *, batch_size: int, sequence_length: int, seed: int, phase: int = 0) -> BatchSource:
    """Windows drawn at random from a stream, which stays on disk.

    Args:
        stream: The tokens, a .npy file.
        batch_size: Windows of a step.
        sequence_length: Tokens of a window.
        seed: Decides the draws, with the number of the step.
        phase: Tells the draws of one phase of an experiment from those of another with the same seed.
    """
    tokens = np.load(stream, mmap_mode="r")

    def batch(step: int) -> Batch:
        draw = np.random.default_rng((seed, phase, step))
        starts = draw.integers(0, len(tokens) - sequence_length + 1, size=batch_size)
        windows = np.stack([tokens[start : start + sequence_length] for start in starts])
        return {"input_ids": torch.from_numpy(windows.astype(np.int64))}

    return batch


def first_windows(stream: Path, n_windows: int, sequence_length: int) -> Int[Tensor, "sequence position"]:
    """The first windows of a stream, one after the other: fewer if it is short."""
    tokens = np.load(stream, mmap_mode="r")
    n_windows = min(n_windows, len(tokens) // sequence_length)
    windows = np.array(tokens[: n_windows * sequence_length], dtype=np.int64)
    return torch.from_numpy(windows).reshape(n_windows, sequence_length)
