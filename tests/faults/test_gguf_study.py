"""A user who has nothing but a .gguf: fetched, tokenised and recorded by both drivers, with the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from outlier_moe.config.registry import FilesSource, GgufSource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources.corpora import fetch_corpus
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import tokenize_corpus
from tests.tiny_gguf import write_gguf
from tests.unit.sources.entries import corpus_entry, model_entry


def test_a_gguf_file_is_studied_whole_and_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLIER_MOE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", kinds=[gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q8_0])
    fetch_model(model_entry(GgufSource(tmp_path / "tiny.gguf")), tmp_path / "model")
    (tmp_path / "own.txt").write_text("the  12 things\n\nthat thin 1 thing " * 20)
    fetch_corpus(corpus_entry(FilesSource((str(tmp_path / "own.txt"),))), tmp_path / "text.parquet")
    where = (tmp_path / "text.parquet", tmp_path / "model", tmp_path / "tokens.arrow")
    tokenize_corpus(*where, n_sequences=2, sequence_length=24, bos="never")
    for mode in ("resident", "streamed"):
        options = RecordOptions(mode=mode, device="cpu", floor=0.5)
        record_outliers(tmp_path / "model", tmp_path / "tokens.arrow", tmp_path / mode, options)
    tables = {path.name for path in (tmp_path / "resident").iterdir()} - {"run.json"}
    assert "layer_00.arrow" in tables
    for name in tables:
        assert (tmp_path / "resident" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes(), name
    assert json.loads((tmp_path / "streamed/run.json").read_text())["source"]["kind"] == "gguf"
