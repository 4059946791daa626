"""Models that are not decoder language models, recognised from their configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from outlier_moe.errors import StudyError

# Their attention is causal whatever is_decoder says.
_CAUSAL_WITHOUT_SAYING = frozenset({"gpt_neox", "gpt_neox_japanese"})

# What a class's name says of the task that a model was trained for.
_TASKS = {
    "ForSequenceClassification": "a classifier or reward model",
    "ForTokenClassification": "a token classifier",
    "ForQuestionAnswering": "a model that marks answers in a text",
    "ForMultipleChoice": "a classifier",
    "RewardModel": "a reward model",
    "ForMaskedLM": "an encoder (masked language model)",
    "ForPreTraining": "an encoder (masked language model)",
    "ForEmbedding": "an embedding model",
    "ForRetrieval": "an embedding model",
    "ForImageClassification": "an image classifier",
}


class OtherKind(NamedTuple):
    """What a model is, if it is no decoder language model."""

    what: str
    """What the model is, as a noun phrase."""
    key: str
    """The key of the configuration that says so."""
    got: str
    """The value of that key."""
    remedy: str
    """What the user can do instead."""


def other_kind(config: Any) -> OtherKind | None:
    """The kind of model of a configuration, if it is not a decoder language model."""
    architectures = list(getattr(config, "architectures", None) or ())
    named = ", ".join(architectures) or config.model_type
    if getattr(config, "is_encoder_decoder", False):
        remedy = "Take a decoder-only model: which of the two stacks a count would be of is not defined."
        return OtherKind("an encoder-decoder model", "is_encoder_decoder", f"true ({named})", remedy)
    tasks = [next((what for end, what in _TASKS.items() if name.endswith(end)), None) for name in architectures]
    # Some list every class that they come with.
    if tasks and all(tasks) and not _is_pretrained_decoder(config, architectures):
        remedy = "Take the language model that it was made from: this one has no language model's head, so no loss."
        return OtherKind(str(tasks[0]), "architectures", named, remedy)
    if getattr(config, "is_decoder", None) is False and config.model_type not in _CAUSAL_WITHOUT_SAYING:
        remedy = "Take a decoder model; if this one was trained as one, its configuration must say is_decoder: true."
        return OtherKind("an encoder, in which every token sees all others", "is_decoder", f"false ({named})", remedy)
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        remedy = "Take the decoder model that it was made from."
        return OtherKind(
            "an embedding model, in which every token sees all others", "use_bidirectional_attention", named, remedy
        )
    return None


def _is_pretrained_decoder(config: Any, architectures: Sequence[str]) -> bool:
    """Whether `ForPreTraining` is a language model's class, as of vision-language and some older decoders."""
    return all(name.endswith("ForPreTraining") for name in architectures) and not hasattr(config, "is_decoder")


def refuse_other_kinds(config: Any) -> None:
    """Refuse models that are not decoder language models, and weights in MLX's format.

    Raises:
        StudyError: If the configuration is of something else.
    """
    if (found := other_kind(config)) is not None:
        raise StudyError(
            f"The model is {found.what}, and no decoder language model.",
            file="config.json",
            key=found.key,
            expected="a decoder language model, such as ...ForCausalLM",
            got=found.got,
            remedy=found.remedy,
        )
    packed = getattr(config, "quantization", None)
    if isinstance(packed, dict) and "bits" in packed and getattr(config, "quantization_config", None) in (None, packed):
        raise StudyError(
            "The checkpoint is quantised by MLX, which transformers cannot undo.",
            file="config.json",
            key="quantization",
            got=packed,
            remedy="Take the checkpoint that it was converted from, or dequantise it: mlx_lm.convert -d.",
        )
