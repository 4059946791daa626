"""The tokenizer of a model in memory: the one that is given, or that of the folder or repository it came from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

from huggingface_hub import try_to_load_from_cache
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from outlier_moe.architectures.lengths import Length, length_for
from outlier_moe.architectures.positions import positions_of
from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import small_files
from outlier_moe.sources.given_tokens import Reader
from outlier_moe.sources.hub import download, resolve_model
from outlier_moe.sources.study_tokenizer import StudyTokenizer, study_tokenizer
from outlier_moe.sources.tokenization import TokenTable
from outlier_moe.sources.tokenizer_files import OpenedTokenizer, open_tokenizer

log = logging.getLogger(__name__)


def held_reader(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str | None) -> Reader:
    """What decides which tokens a model in memory can be given.

    Args:
        model: The model.
        tokenizer: Its tokenizer, if one is given.
        name: How to name the model; by default as its folder or repository.

    Raises:
        StudyError: If what is given is no tokenizer of transformers.
    """
    if tokenizer is not None and not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise StudyError(
            "This is no tokenizer.",
            key="tokenizer",
            expected="a tokenizer of transformers, as AutoTokenizer gives it",
            got=type(tokenizer).__name__,
        )
    shown = name or Path(str(model.name_or_path)).name or str(model.config.model_type)
    text = model.config.get_text_config(decoder=True)
    embedding = cast(nn.Embedding, model.get_input_embeddings())

    @cache
    def opened() -> StudyTokenizer:
        if tokenizer is not None:
            given = OpenedTokenizer(tokenizer, "transformers", None)
            return study_tokenizer(given, text.to_dict(), Path(tokenizer.name_or_path))
        folder = _folder(model, shown)
        return study_tokenizer(open_tokenizer(folder), text.to_dict(), folder)

    def length(asked: int, shortens: bool) -> Length:
        positions = positions_of(model.config, longer_than=asked, model=model)
        return length_for(asked, positions, shortens=shortens, model=shown)

    return Reader(shown, Path(shown), embedding.num_embeddings, opened, length)


def decoder(
    model: PreTrainedModel, reader: Reader, tokenizer: PreTrainedTokenizerBase | None, tokens: TokenTable
) -> Callable[[list[int]], str]:
    """What turns tokens into text: the tokenizer if it is here, else tokens are told by their numbers.

    Args:
        model: The model.
        reader: What `held_reader` says of it.
        tokenizer: Its tokenizer, if one was given.
        tokens: What it is recorded on; tokens of a text have opened the tokenizer.
    """
    came_from = str(model.name_or_path)
    is_here = tokenizer is not None or "tokenizer_sha256" in tokens.metadata or Path(came_from).is_dir()
    if is_here or _is_cached(came_from):
        try:
            return reader.tokenizer().decode
        except StudyError as error:
            # No figure depends on it.
            log.info("%s: tokens are told by their numbers: %s", reader.name, error.problem)
    return lambda numbers: " ".join(f"#{number}" for number in numbers)


def _folder(model: PreTrainedModel, shown: str) -> Path:
    """The folder of a model's tokenizer files, downloaded from the hub if need be."""
    came_from = str(model.name_or_path)
    if came_from and Path(came_from).is_dir():
        return Path(came_from)
    if came_from.count("/") != 1 or came_from.startswith((".", "/")):
        raise StudyError(
            "The model's tokenizer is not known.",
            key="tokenizer",
            expected="the tokenizer that the model was trained with",
            got=f"{shown}, a model that came from no folder or repository" if not came_from else came_from,
            remedy="Give it (tokenizer=...), or give the ids of tokens.",
        )
    snapshot = resolve_model(came_from, getattr(model.config, "_commit_hash", None) or "main", key="model")
    return download(came_from, snapshot.commit, small_files([file.name for file in snapshot.files]), key="model")


def _is_cached(repository: str) -> bool:
    """Whether the hub's cache has a repository's tokenizer."""
    is_repository = repository.count("/") == 1 and not repository.startswith((".", "/"))
    return is_repository and isinstance(try_to_load_from_cache(repository, "tokenizer.json"), str)
