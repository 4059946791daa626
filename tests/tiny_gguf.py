"""Tiny models in GGUF, of any quantisation, in one file or in parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

D_MODEL, D_FF, N_LAYERS = 256, 256, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "Ġ 1", "t h", "Ġ t"]
VOCABULARY = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]

MATRICES = {
    "attn_q": (D_MODEL, D_MODEL),
    "attn_k": (D_MODEL // 2, D_MODEL),
    "attn_v": (D_MODEL // 2, D_MODEL),
    "attn_output": (D_MODEL, D_MODEL),
    "ffn_gate": (D_FF, D_MODEL),
    "ffn_up": (D_FF, D_MODEL),
    "ffn_down": (D_MODEL, D_FF),
}


@cache
def _finite_blocks(kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Blocks of any bits whose values are finite and not large."""
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(1).integers(0, 256, (4096, n_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(blocks, kind).reshape(-1, n_values)
        good = blocks[np.isfinite(values).all(-1) & (np.abs(values).max(-1) < 8)]
    assert len(good) > 16
    return good


def random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Bytes of a quantised tensor."""
    n_values = gguf.GGML_QUANT_SIZES[kind][0]
    good = _finite_blocks(kind)
    chosen = rng.integers(0, len(good), (*shape[:-1], shape[-1] // n_values))
    return good[chosen].reshape(*shape[:-1], -1)


def add_llama(writer: gguf.GGUFWriter, cut: str | None) -> None:
    """Metadata of a Llama, or of a family like it, with a byte-level tokenizer."""
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(D_MODEL // 4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    if cut is not None:
        writer.add_tokenizer_pre(cut)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(VOCABULARY) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    cut: str | None = "smollm",
    kinds: Sequence[gguf.GGMLQuantizationType] = (gguf.GGMLQuantizationType.F32,),
    tensors: Mapping[str, np.ndarray] | None = None,
    without: str = "",
    more: Callable[[gguf.GGUFWriter], Any] = lambda writer: None,
    max_tensors: int = 0,
) -> None:
    """A tiny random Llama with tied embeddings.

    Args:
        path: The file; of one in parts, what their names begin with.
        architecture: What it says that it is.
        cut: How its tokenizer cuts text.
        kinds: How its matrices are stored, one after the other and from the start again.
        tensors: More tensors, as values.
        without: A tensor to leave out.
        more: Adds metadata.
        max_tensors: Tensors of a part; 0 for one file.
    """
    rng = np.random.default_rng(0)
    of_matrix = cycle(kinds)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=max_tensors)
    add_llama(writer, cut)
    more(writer)
    plain = {"token_embd.weight": (len(VOCABULARY), D_MODEL), "output_norm.weight": (D_MODEL,)}
    for layer in range(N_LAYERS):
        plain |= {f"blk.{layer}.{name}.weight": (D_MODEL,) for name in ("attn_norm", "ffn_norm")}
        for name, shape in MATRICES.items():
            if (full := f"blk.{layer}.{name}.weight") != without:
                _add_matrix(writer, full, shape, next(of_matrix), rng)
    for name, shape in plain.items():
        if name != without:
            writer.add_tensor(name, (1 + 0.1 * rng.normal(size=shape)).astype(np.float32))
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_matrix(
    writer: gguf.GGUFWriter,
    name: str,
    shape: tuple[int, int],
    kind: gguf.GGMLQuantizationType,
    rng: np.random.Generator,
) -> None:
    values = (rng.normal(size=shape) / 8).astype(np.float32)
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
    elif kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, random_blocks(kind, shape, rng), raw_dtype=kind)
