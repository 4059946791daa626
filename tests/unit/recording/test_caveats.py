"""What a recording says of its tokens, and sequences that a model has no positions for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig

from outlier_moe.config.registry import DirectorySource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens
from tests.tiny_models import byte_tokenizer
from tests.unit.sources.entries import model_entry

MOST = 12
OPTIONS = RecordOptions(mode="resident", chunk=2, n_peaks=1, taps=("residual",))
TABLE = GPT2Config(vocab_size=256, n_positions=MOST, n_embd=16, n_layer=1, n_head=2)
ROTARY = LlamaConfig(
    vocab_size=256,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=MOST,
)


def recorded(folder: Path, config: PreTrainedConfig, length: int, **said: Any) -> list[str]:
    """What the recording of a tiny model on so long sequences says of itself."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "checkpoint")
    byte_tokenizer("a few words to learn from").save_pretrained(folder / "checkpoint")
    fetch_model(model_entry(DirectorySource(folder / "checkpoint")), folder / "fetched")
    tokens = np.arange(2 * length, dtype=np.uint32).reshape(2, length) % 200
    metadata = {"n_sequences": 2, "sequence_length": length, "tokens_sha256": tokens_sha256(tokens), **said}
    write_tokens(TokenTable(tokens, {"corpus_sha256": "0" * 64, **metadata}), folder / "tokens.arrow")
    record_outliers(folder / "fetched", folder / "tokens.arrow", folder / "outliers", OPTIONS)
    return json.loads((folder / "outliers/run.json").read_text())["caveats"]


def test_a_model_is_not_loaded_for_sequences_that_it_has_no_positions_for(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        recorded(tmp_path, TABLE, MOST + 1)
    assert caught.value.key == "tokenize_corpus.sequence_length" and "at most 12" in str(caught.value.expected)
    assert not (tmp_path / "outliers").exists()


def test_a_recording_says_what_is_odd_about_its_tokens(tmp_path: Path) -> None:
    assert recorded(tmp_path / "fits", TABLE, MOST) == []
    (beyond,) = recorded(tmp_path / "beyond", ROTARY, MOST + 1)
    assert "made for 12" in beyond
    said = {"tokenizer_note": "another tokenizer", "length_note": "shorter than the study's", "asked_length": 64}
    assert recorded(tmp_path / "said", ROTARY, MOST, **said) == ["another tokenizer", "shorter than the study's"]
