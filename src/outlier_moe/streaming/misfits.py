"""Errors for a checkpoint that does not fit its model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_files import INDEX


def lacks_weights(
    directory: Path, missing: Collection[str], *, model: PreTrainedModel, unlisted: Mapping[str, str]
) -> StudyError:
    """The error for a checkpoint that lacks weights of the model.

    Args:
        directory: The checkpoint.
        missing: The weights.
        model: The model.
        unlisted: Tensors that lie in its files and not in its index, with their files.
    """
    expected = f"a tensor for every weight of {type(model).__name__}"
    if unlisted:
        files = sorted(set(unlisted.values()))
        return StudyError(
            "The index of a checkpoint does not list weights that the model needs.",
            file=directory / INDEX,
            key=some(missing),
            expected=expected,
            got=f"{some(unlisted)} in {some(files)}, and not in the index",
            remedy="If these tensors are the model's, add them to weight_map; else take index and files of one save.",
        )
    if set(missing) <= _head(model):
        named = ", ".join(model.config.architectures or ()) or type(model).__name__
        return StudyError(
            "The checkpoint has no language model's head.",
            file=directory,
            key=some(missing),
            expected=expected,
            got=f"the rest of the model; config.json says {named}",
            remedy="An embedding or reward model lacks it: take the language model that it was made from. If the head "
            "is tied to the embedding, config.json must say tie_word_embeddings: true.",
        )
    return StudyError(
        "The checkpoint lacks weights of the model.",
        file=directory / "config.json",
        key=some(missing),
        expected=expected,
        remedy="Check that config.json and the shards are of the same model and save.",
    )


def _head(model: PreTrainedModel) -> set[str]:
    head = model.get_output_embeddings()
    parameters = set(map(id, head.parameters())) if isinstance(head, nn.Module) else set()
    return {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in parameters}


def some(names: Collection[str]) -> str:
    """The first few of some names, and how many more there are."""
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
