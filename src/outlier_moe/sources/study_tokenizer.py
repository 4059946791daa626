"""A fetched model's tokenizer, as the study uses it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

from outlier_moe.architectures.model_class import SAME_ARCHITECTURE, config_fields, read_config
from outlier_moe.errors import StudyError
from outlier_moe.sources.origin import read_origin
from outlier_moe.sources.tokenizer_files import OpenedTokenizer, open_tokenizer

log = logging.getLogger(__name__)

# What tells one slow tokenizer from another; fast ones are told apart by what they do and not by their files.
_TOKENIZER_FILES = (
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "vocab*",
    "merges*",
    "added_tokens*",
    "special_tokens*",
    "*.py",
)


@dataclass(frozen=True)
class StudyTokenizer:
    """A tokenizer and its special tokens."""

    tokenizer: PreTrainedTokenizerBase
    """The tokenizer itself."""
    kind: Literal["transformers", "tokenizer.json", "tiktoken"]
    """Whether it is transformers' class, its own file's tokenizer because that class differs, or converted."""
    note: str | None
    """Why it is not transformers' class."""
    sha256: str
    """SHA-256 of what it does, the same for two models with the same tokenizer."""
    end_of_text: int
    """What is set behind each document: its eos_token, or the configuration's eos_token_id if it names none."""
    bos: int | None
    """Its BOS token, if it has one."""
    adds_bos: bool
    """Whether it adds BOS by itself."""
    vocab_size: int | None
    """Tokens that the model knows, if its configuration says so."""

    def tokenize(self, documents: Sequence[str]) -> list[list[int]]:
        """Each document's tokens, without special ones around them."""
        encoded = self.tokenizer(
            list(documents), add_special_tokens=False, return_attention_mask=False, truncation=False, verbose=False
        )
        return encoded["input_ids"]

    def decode(self, tokens: list[int]) -> str:
        """The text of some tokens."""
        return str(self.tokenizer.decode(tokens))


def load_tokenizer(model_directory: Path) -> StudyTokenizer:
    """The tokenizer of a fetched model.

    Raises:
        StudyError: If it cannot be loaded, or names no end-of-text token.
    """
    trusted = read_origin(model_directory).trust_remote_code
    config = _text_config(model_directory, trusted)
    return study_tokenizer(open_tokenizer(model_directory, trust_remote_code=trusted), config, model_directory)


def study_tokenizer(opened: OpenedTokenizer, config: Mapping[str, Any], folder: Path) -> StudyTokenizer:
    """A tokenizer with what the study asks of it.

    Args:
        opened: The tokenizer.
        config: The configuration of the model's text part.
        folder: Where its files lie, if they do.

    Raises:
        StudyError: If it names no end-of-text token.
    """
    tokenizer = opened.tokenizer
    with_special = tokenizer("a")["input_ids"]
    bos = _single(tokenizer.bos_token_id)
    end_of_text = _end_of_text(tokenizer, config, folder)
    return StudyTokenizer(
        tokenizer=tokenizer,
        kind=opened.kind,
        note=opened.note,
        sha256=_sha256(tokenizer, folder, [bos, end_of_text, *with_special]),
        end_of_text=end_of_text,
        bos=bos,
        adds_bos=bos is not None and len(with_special) > 0 and with_special[0] == bos,
        vocab_size=config.get("vocab_size"),
    )


def _text_config(model_directory: Path, trusted: bool) -> dict[str, Any]:
    """The configuration of a model's text part, with transformers' defaults if it knows the architecture."""
    keys = config_fields(model_directory / "config.json")
    family = keys.get("model_type")
    if family in CONFIG_MAPPING or family in SAME_ARCHITECTURE or (trusted and "auto_map" in keys):
        return read_config(model_directory, trust_remote_code=trusted).get_text_config().to_dict()
    log.warning("transformers does not know the family of %s (%s).", model_directory.name, family)
    text = keys.get("text_config")
    return {**keys, **(text if isinstance(text, dict) else {})}


def _single(token: Any) -> int | None:
    """A token where transformers or a configuration may name several."""
    return token[0] if isinstance(token, list) else token


def _end_of_text(tokenizer: PreTrainedTokenizerBase, config: Mapping[str, Any], model_directory: Path) -> int:
    for token in (_single(tokenizer.eos_token_id), _single(config.get("eos_token_id"))):
        if token is not None:
            return token
    raise StudyError(
        "A tokenizer names no end-of-text token, so that documents cannot be told apart.",
        file=model_directory,
        key="eos_token",
        expected="eos_token in tokenizer_config.json, or eos_token_id in config.json",
        got="neither",
        remedy="Register a copy of the model with one of the two set, as a source of kind `directory`.",
    )


def _sha256(tokenizer: PreTrainedTokenizerBase, model_directory: Path, special: list[int | None]) -> str:
    digest = hashlib.sha256(json.dumps(special).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        digest.update(backend.to_str().encode())
        return digest.hexdigest()
    for path in sorted({path for pattern in _TOKENIZER_FILES for path in model_directory.glob(pattern)}):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode() + path.read_bytes())
    return digest.hexdigest()
