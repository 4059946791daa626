"""The identity of a trained model: a checkpoint of another one is refused."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def plain_config(model: PreTrainedModel) -> dict[str, Any]:
    """A model's configuration as JSON has it, without what another version or another place of it would change."""
    left_out = ("transformers_version", "_name_or_path", "architectures", "dtype")
    return {key: _named(value) for key, value in model.config.to_dict().items() if key not in left_out}


def _named(value: Any) -> Any:
    # JSON has no numbers for names.
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value
