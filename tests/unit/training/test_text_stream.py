"""Text for training: what is held out is never trained on, windows are the same for the same number, mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from outlier_moe.errors import StudyError
from outlier_moe.sources.corpora import read_corpus
from outlier_moe.training.text_stream import TextOptions, first_windows, token_windows, tokenize_training_text
from tests.hub_server import reachable_hub
from tests.unit.upcycling.tiny_text import fetched_corpus, tokenized_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenized_text(tmp_path_factory.mktemp("text"))


def test_both_parts_together_are_the_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    documents = read_corpus(folder.parent / "corpus.parquet").documents
    parts = {
        name: tokenizer.decode(np.load(folder / f"{name}.npy").tolist()).split("<|endoftext|>")[:-1]
        for name in ("train", "held_out")
    }
    assert sorted(parts["train"] + parts["held_out"]) == sorted(documents)
    assert len(parts["held_out"]) == 4
    assert parts["held_out"] == read_corpus(folder / "held_out.parquet").documents
    facts = json.loads((folder / "text.json").read_text())
    assert facts["n_train_tokens"] == len(np.load(folder / "train.npy"))
    assert facts["vocab_size"] == len(tokenizer) == 280


def test_windows_are_pieces_of_the_stream_and_depend_on_seed_phase_and_step(folder: Path) -> None:
    stream = np.load(folder / "train.npy").astype(np.int64)
    pieces = {tuple(stream[start : start + 9]) for start in range(len(stream) - 8)}

    def windows(step: int, seed: int = 0, phase: int = 1) -> torch.Tensor:
        source = token_windows(folder / "train.npy", batch_size=5, sequence_length=9, seed=seed, phase=phase)
        return source(step)["input_ids"]

    assert windows(3).shape == (5, 9)
    assert {tuple(row) for row in windows(3).tolist()} <= pieces
    assert torch.equal(windows(3), windows(3))
    for other in (windows(4), windows(3, seed=1), windows(3, phase=2)):
        assert not torch.equal(windows(3), other)


def test_first_windows_follow_each_other(folder: Path) -> None:
    stream = np.load(folder / "held_out.npy")
    assert first_windows(folder / "held_out.npy", 3, 7).flatten().tolist() == stream[:21].tolist()
    assert len(first_windows(folder / "held_out.npy", 10**6, 7)) == len(stream) // 7


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        (TextOptions(vocab_size=5000, sequence_length=16), "upcycle.model.vocab_size", "the tokens of bpe"),
        (TextOptions(vocab_size=280, sequence_length=5000), "upcycle.model.sequence_length", "at most"),
    ],
)
def test_a_wrong_vocabulary_and_a_short_text_are_refused(
    tmp_path: Path, options: TextOptions, key: str, expected: str
) -> None:
    with pytest.raises(StudyError) as caught:
        tokenize_training_text(fetched_corpus(tmp_path), tmp_path / "text", options)
    assert caught.value.key == key
    assert expected in str(caught.value.expected)
    assert not (tmp_path / "text").exists()


def test_a_tokenizer_comes_from_the_hub_with_its_commit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = folder.parent / "corpus.parquet"
    options = TextOptions(vocab_size=280, sequence_length=16, tokenizer="owner/bytes")
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        repository = hub.add_folder("owner/bytes", folder / "tokenizer")
        tokenize_training_text(corpus, tmp_path / "text", options)
        with pytest.raises(StudyError) as caught:
            tokenize_training_text(corpus, tmp_path / "other", replace(options, tokenizer="owner/letters"))
    assert caught.value.key == "upcycle.text.tokenizer"
    assert (np.load(tmp_path / "text/train.npy") == np.load(folder / "train.npy")).all()
    facts = json.loads((tmp_path / "text/text.json").read_text())
    assert (facts["tokenizer"], facts["tokenizer_commit"]) == ("owner/bytes", repository.commit)
