"""The tokenizer of a GGUF file, cut as its model was trained, or refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import file_names
from outlier_moe.sources.gguf_parts import value

# What llama.cpp cuts with GPT-2's pattern, which is transformers' for all that it does not know.
_LIKE_GPT2 = frozenset(
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de mpt olmo jais trillion granite-docling gigachat mellum".split()
)
# What cuts single digits out first.
_SINGLE_DIGITS = frozenset("smollm starcoder refact command-r codeshell exaone minerva-7b".split())
_LIKE_QWEN2 = frozenset({"stablelm2", "hunyuan"})

_TOKENIZER_FILES = re.compile(
    r"tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab.*|merges\.txt|.*\.model|.*\.tiktoken|.*\.jinja"
)


def gguf_tokenizer(whole: Path, reader: GGUFReader, *, named: Path) -> Any:
    """The tokenizer of a GGUF file.

    Args:
        whole: The file that transformers reads.
        reader: The file's metadata.
        named: The file's name for messages.

    Raises:
        StudyError: If there is none, or it is unknown how it cuts text.
    """
    kind, cut = value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")
    if kind is None or "tokenizer.ggml.tokens" not in reader.fields:
        raise _refused(named, "tokenizer.ggml.model", "a tokenizer", "none")
    if kind == "gpt2" and not _is_known(str(cut), reader):
        raise _refused(named, "tokenizer.ggml.pre", "a way to cut text that is known here", cut)
    try:
        tokenizer = AutoTokenizer.from_pretrained(whole.parent, gguf_file=whole.name, local_files_only=True)
    except Exception as error:
        got = f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise _refused(named, "tokenizer.ggml.model", "a tokenizer that transformers reads", got) from error
    _name_special_tokens(tokenizer, reader)
    if kind == "gpt2" and cut in _SINGLE_DIGITS:
        # transformers takes GPT-2's way to cut text before the merges, which joins a space to the digit after it:
        # "  12" would not be the tokens that the model was trained on.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind == "gpt2" and cut in _LIKE_QWEN2:
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


def _is_known(cut: str, reader: GGUFReader) -> bool:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    # Files of GPT-2's own architecture are older than the key.
    is_gpt2 = value(reader, "general.architecture") == "gpt2" and cut in ("None", "default")
    return is_gpt2 or cut in _LIKE_GPT2 | _SINGLE_DIGITS | _LIKE_QWEN2 | set(GGUF_PRE_TOKENIZER_SPLITS)


def _refused(file: Path, key: str, expected: str, got: Any) -> StudyError:
    return StudyError(
        "The tokenizer of a GGUF file cannot be rebuilt for certain.",
        file=file,
        key=key,
        expected=expected,
        got=got,
        remedy="Name a folder with the model's tokenizer files: source: {kind: gguf, path: ..., tokenizer: FOLDER}.",
    )


def _name_special_tokens(tokenizer: Any, reader: GGUFReader) -> None:
    """Give a tokenizer the special tokens of its GGUF file; transformers 5.17 takes BOS for the end of text."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in keys.items():
        token = value(reader, f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(token))


def copy_tokenizer(folder: Path, directory: Path, *, key: str) -> None:
    """Put the tokenizer files of a folder into a model's.

    Raises:
        StudyError: If it has none.
    """
    found = sorted(name for name in file_names(folder) if _TOKENIZER_FILES.fullmatch(name))
    if not found:
        raise StudyError(
            "The folder of a tokenizer has none.",
            file=folder,
            key=f"{key}.tokenizer",
            expected="tokenizer.json, or the files of a slow tokenizer",
            got=", ".join(sorted(file_names(folder))[:4]) if folder.is_dir() else "no such folder",
            remedy="Download them: hf download REPOSITORY --include 'tokenizer*' --local-dir FOLDER.",
        )
    for name in found:
        shutil.copyfile(folder / name, directory / name)
