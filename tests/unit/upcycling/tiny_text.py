"""A small text, tokenised for training, and the sizes of models that learn it."""

from __future__ import annotations

from pathlib import Path

from outlier_moe.config.registry import CorpusEntry, FilesSource
from outlier_moe.sources.corpora import fetch_corpus
from outlier_moe.training.text_stream import TextOptions, tokenize_training_text
from outlier_moe.upcycling.study import ModelSizes

SIZES = ModelSizes(vocab_size=280, d_model=16, n_layers=2, n_heads=2, d_ff=32, sequence_length=16)
WORDS = "the quick brown fox jumps over a lazy dog that does not mind it at all while seven others sleep".split()


def fetched_corpus(folder: Path, *, n_documents: int = 40) -> Path:
    paths = []
    for document in range(n_documents):
        rotated = WORDS[document % 7 :] + WORDS[: document % 5]
        path = folder / f"document{document:02d}.txt"
        path.write_text(" ".join(rotated * (1 + document % 3)))
        paths.append(str(path))
    corpus = folder / "corpus.parquet"
    fetch_corpus(CorpusEntry("small", FilesSource(tuple(paths)), 10**6), corpus)
    return corpus


def tokenized_text(folder: Path) -> Path:
    output = folder / "text"
    options = TextOptions(vocab_size=SIZES.vocab_size, sequence_length=SIZES.sequence_length)
    tokenize_training_text(fetched_corpus(folder), output, options)
    return output
