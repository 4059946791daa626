"""Numbers of a model's configuration that families keep under different names."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedConfig

# How families call the number of experts that work on a token.
CHOICE_FIELDS = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts", "top_k",
)  # fmt: skip


def n_chosen(config: PreTrainedConfig) -> int:
    """Experts that work on a token; the largest number if layers differ.

    DBRX says it in a part of its configuration. Where a family does not say it at all, one expert works.
    """
    parts = (config, getattr(config, "ffn_config", None))
    numbers = (getattr(part, name, None) for part in parts if part is not None for name in CHOICE_FIELDS)
    found = (max(number, default=0) if isinstance(number, list | tuple) else number for number in numbers)
    return next((number for number in found if isinstance(number, int) and number > 0), 1)


def first_number(config: PreTrainedConfig, names: Iterable[str]) -> int | None:
    """The first field of a configuration that is a positive whole number."""
    numbers = (getattr(config, name, None) for name in names)
    return next((number for number in numbers if isinstance(number, int) and number > 0), None)
