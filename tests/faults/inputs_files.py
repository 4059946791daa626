"""Wrong files of models: folders, shards, indices, configurations and GGUF."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save

from outlier_moe.config.registry import DirectorySource, GgufSource
from outlier_moe.sources.models import fetch_model
from tests.faults.wrong_inputs import Answer, WrongInput, called, registered
from tests.unit.sources.checkpoints import INDEX, shards, write
from tests.unit.sources.entries import model_entry

SINGLE = "model.safetensors"
WEIGHTS = save({"embed": np.arange(6, dtype=np.float32)})
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4000\n"

Files = Mapping[str, bytes]


def model(weights: Files | None = None, config: Any = LLAMA, **more: bytes) -> dict[str, bytes]:
    """The files of a model."""
    own = {SINGLE: WEIGHTS} if weights is None else weights
    return {"config.json": json.dumps(config).encode(), "tokenizer.json": b"{}", **own, **more}


def fetched(folder: Path, **options: Any) -> Answer:
    """The answer to a folder as a model's source, with what is logged."""
    told = io.StringIO()
    handler = logging.StreamHandler(told)
    logger = logging.getLogger("outlier_moe")
    logger.addHandler(handler)
    try:
        answer = called(fetch_model, model_entry(DirectorySource(folder), **options), folder.parent / "fetched")
    finally:
        logger.removeHandler(handler)
    return Answer(answer.failed, answer.text + told.getvalue())


def a_folder(name: str, files: Files, *says: str, is_warning: bool = False) -> WrongInput:
    """A model's folder with some files."""
    return WrongInput(f"model: {name}", lambda place: fetched(write(place / "given", files)), says, is_warning)


def changed(name: str, change: Callable[[Path], object], *says: str) -> WrongInput:
    """A sound folder in which something is changed."""

    def ask(place: Path) -> Answer:
        change(write(place / "given", model()))
        return fetched(place / "given")

    return WrongInput(f"model: {name}", ask, says)


def built(name: str, config: Mapping[str, Any], *says: str) -> WrongInput:
    """A configuration that is read, and from which a model is built."""

    def ask(place: Path) -> Answer:
        import torch

        from outlier_moe.architectures.model_class import meta_model, read_config

        folder = write(place, {"config.json": json.dumps(config).encode()})
        return called(lambda: meta_model(read_config(folder), torch.float32))

    return WrongInput(f"config.json: {name}", ask, says)


def gguf_file(name: str, make: Callable[[Path], object], *says: str, path: str = "a.gguf") -> WrongInput:
    """A GGUF source."""

    def ask(place: Path) -> Answer:
        make(place)
        return called(fetch_model, model_entry(GgufSource(place / path)), place / "fetched")

    return WrongInput(f"gguf: {name}", ask, says)


def linked(name: str) -> Callable[[Path], object]:
    """Have a file of the folder be a link to nothing."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/nowhere/blob")

    return change


def a_directory_named(name: str) -> Callable[[Path], object]:
    """Have a file of the folder be a folder."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        write(folder / name, {name: content})

    return change


def a_gguf(architecture: str, **strings: str) -> Callable[[Path], object]:
    """A GGUF file without tensors."""

    def make(place: Path) -> None:
        writer = GGUFWriter(place / "a.gguf", architecture)
        for key, value in strings.items():
            writer.add_string(key.replace("__", "."), value)
        writer.add_tensor("a", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return make


def index(**places: str) -> dict[str, bytes]:
    """Two shards, and an index that says so much."""
    files = shards([["a"], ["b"]])
    return {**files, INDEX: json.dumps({"weight_map": places}).encode()}


def source(**keys: Any) -> dict[str, Any]:
    """A registry of one model with a source."""
    own = {"family": "llama", "kind": "dense", "total_params_b": 1, "active_params_b": 1, "sweeps": [], "corpus": "t"}
    corpora = {"t": {"source": {"kind": "pydoc_topics"}, "max_characters": 10}}
    return {"models": {"m": {**own, "source": keys}}, "corpora": corpora}


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
ADAPTER = json.dumps({"base_model_name_or_path": "owner/base", "peft_type": "LORA"}).encode()

CHECKPOINTS = {f"checkpoint-{n}/{file}": content for n in (500, 1000) for file, content in model().items()}
SNAPSHOT = {f"snapshots/abc/{file}": content for file, content in model().items()}
REWARD = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
A_COPY = source(kind="directory", path="x")
A_COPY["models"]["m"]["copy_of"] = "mixtral"

POOLING: Files = {**model(), "modules.json": b"[]", "config_sentence_transformers.json": b"{}"}
CASES = [
    a_folder("a decoder of sentence-transformers", POOLING, "embedding", "made from"),
    a_folder(
        "an adapter",
        model({"adapter_config.json": ADAPTER, "adapter_model.safetensors": WEIGHTS}),
        "PEFT",
        "owner/base",
        "merge_and_unload",
    ),
    a_folder("a model with an adapter", model({SINGLE: WEIGHTS, "adapter_config.json": ADAPTER}), "adapter", "merge"),
    a_folder(
        "Mistral's own format",
        {"params.json": b"{}", "consolidated.safetensors": WEIGHTS},
        "own format",
        "transformers' format",
    ),
    a_folder("Meta's own format", {"params.json": b"{}", "consolidated.00.pth": b"PK"}, "own format", "convert"),
    a_folder("pickles", model({"pytorch_model.bin": b"PK"}), "can run code", "refs/pr/N"),
    a_folder("a fp16 variant", model({"model.fp16.safetensors": WEIGHTS}), "variant", "plain names"),
    a_folder("GGUF in a directory source", {"tiny.Q4_K_M.gguf": b"GGUF"}, "GGUF", "kind: gguf"),
    a_folder("ONNX", model({"model.onnx": b""}), "ONNX", "exported from"),
    a_folder("MLX, old", model({"weights.npz": b""}), "MLX"),
    a_folder("a diffusion pipeline", {"model_index.json": b"{}"}, "diffusion", "decoder model"),
    a_folder("a DeepSpeed state", {"zero_to_fp32.py": b"", "latest": b""}, "training run", "save_pretrained"),
    a_folder("a safetensors of another name", model({"weights_final.safetensors": WEIGHTS}), "other names", SINGLE),
    a_folder(
        "a trainer's output",
        {f"checkpoint-{n}/{file}": content for n in (500, 1000) for file, content in model().items()},
        "below",
        "checkpoint-1000",
    ),
    a_folder(
        "the hub's cache",
        {f"snapshots/abc/{file}": content for file, content in model().items()},
        "below",
        "snapshots/abc",
    ),
    a_folder("an empty folder", {"README.md": b""}, "no safetensors", "README.md"),
    a_folder("an empty file", model({SINGLE: b""}), "no safetensors file", "an empty file"),
    a_folder("weights that are an LFS pointer", model({SINGLE: POINTER}), "git lfs pull"),
    a_folder(
        "a tokenizer that is an LFS pointer",
        model({SINGLE: WEIGHTS, "tokenizer.json": POINTER}),
        "tokenizer.json",
        "git lfs pull",
    ),
    a_folder("weights that are a web page", model({SINGLE: b"<!DOCTYPE html><html>404</html>"}), "web page"),
    a_folder("weights that are a pickle", model({SINGLE: b"PK\x03\x04" + b"0" * 40}), "zip of pickles"),
    a_folder("weights that are GGUF", model({SINGLE: b"GGUF" + b"0" * 40}), "a GGUF file", "kind: gguf"),
    a_folder("weights cut short", model({SINGLE: WEIGHTS[:-4]}), "cut short", "anew"),
    a_folder("weights with bytes behind them", model({SINGLE: WEIGHTS + b"0000"}), "no tensor's"),
    changed("weights that are a dangling link", linked(SINGLE), "link to nothing", "/nowhere/blob"),
    changed("a tokenizer that is a dangling link", linked("tokenizer.json"), "tokenizer.json", "link to nothing"),
    changed("a folder named like the weights", a_directory_named(SINGLE), "a folder", "move"),
    a_folder(
        "an index that names an absent shard",
        model({ONE: WEIGHTS, INDEX: index(a=ONE, b=TWO)[INDEX]}),
        "not there",
        TWO,
    ),
    a_folder("an index that leads out", model(index(a=ONE, b="../b.safetensors")), "weight_map", "../b.safetensors"),
    a_folder("an index that names pickles", model(index(a=ONE, b="b.bin")), "weight_map", "b.bin"),
    a_folder("an index that is cut", model({**index(a=ONE), INDEX: b'{"weight_map": {'}), "index", "anew"),
    a_folder("a shard without a tensor of the index", model(index(a=ONE, b=ONE)), "lacks a tensor", "different saves"),
    a_folder("one of two shards without an index", model({ONE: WEIGHTS}), "lacks some of its shards", "number 2"),
    a_folder(
        "shards of two saves", model({ONE: WEIGHTS, "model-00001-of-00003.safetensors": WEIGHTS}), "several saves"
    ),
    a_folder("a tensor in two shards without an index", model({ONE: WEIGHTS, TWO: WEIGHTS}), "two shards", INDEX),
    a_folder("an encoder-decoder", model(config={"model_type": "t5", "is_encoder_decoder": True}), "encoder-decoder"),
    a_folder(
        "an encoder-decoder that its file does not call one", model(config={"model_type": "t5"}), "encoder-decoder"
    ),
    a_folder(
        "a reward model",
        model(config=REWARD),
        "reward model",
        "language model",
    ),
    a_folder(
        "a masked language model", model(config={"model_type": "bert", "architectures": ["BertForMaskedLM"]}), "encoder"
    ),
    a_folder("an embedding model", model(config={**LLAMA, "use_bidirectional_attention": True}), "embedding model"),
    a_folder(
        "MLX, quantised", model(config={**LLAMA, "quantization": {"bits": 4, "group_size": 64}}), "MLX", "convert"
    ),
    built("bart", {"model_type": "bart"}, "encoder-decoder"),
    built("bert", {"model_type": "bert"}, "is_decoder"),
    built(
        "heads that do not divide",
        {"model_type": "gpt2", "n_embd": 30, "n_head": 4, "n_layer": 1},
        "builds no model",
        "divide",
    ),
    built("a dtype that is none", {**LLAMA, "dtype": "bfloat61"}, "bfloat61", "bfloat16"),
    built("no model_type", {"architectures": ["LlamaForCausalLM"]}, "does not name its family"),
    gguf_file("absent", lambda place: None, "not there", "source.path"),
    gguf_file("a page of Git LFS", lambda place: (place / "a.gguf").write_bytes(POINTER), "Git LFS"),
    gguf_file("cut short", lambda place: (place / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00"), "no whole GGUF"),
    gguf_file("an architecture that is unknown", a_gguf("rwkv7"), "rwkv7", "safetensors"),
    gguf_file("an adapter", a_gguf("llama", general__type="adapter"), "adapter", "merged"),
    gguf_file(
        "one part of three",
        lambda place: (place / "a-00001-of-00003.gguf").write_bytes(b"GGUF"),
        "00002-of-00003",
        path="a-00001-of-00003.gguf",
    ),
    gguf_file("a piece cut by size", lambda place: None, "cat ", path="a.gguf-split-b"),
    gguf_file(
        "two models in a folder",
        lambda place: write(place / "two", {"a.gguf": b"", "b.gguf": b""}),
        "a.gguf, b.gguf",
        "source.path",
        path="two",
    ),
    WrongInput(
        "model: a GGUF file as a directory",
        lambda place: fetched(write(place, {"a.gguf": b"GGUF"}) / "a.gguf"),
        ("kind: gguf",),
    ),
    WrongInput(
        "model: a file as a directory",
        lambda place: fetched(write(place, {SINGLE: WEIGHTS}) / SINGLE),
        ("name its folder",),
    ),
    WrongInput(
        "registry: copy_of is no repository",
        registered(
            {
                **source(kind="directory", path="x"),
                "models": {"m": {**source(kind="directory", path="x")["models"]["m"], "copy_of": "mixtral"}},
            }
        ),
        ("copy_of",),
    ),
    WrongInput("registry: a gguf source without path", registered(source(kind="gguf", file="a.gguf")), ("source",)),
]
