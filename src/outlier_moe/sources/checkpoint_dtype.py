"""The precision that a checkpoint is computed in where its configuration does not say: that of most of its weights."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outlier_moe.errors import StudyError
from outlier_moe.sources.safetensors_header import TensorEntry

log = logging.getLogger(__name__)

# Values of fewer bits are quantised, and mean something with their scales only. The widest of those equally frequent
# comes first.
_COMPUTING = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_WITHOUT = "float32"


def declared_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype in a configuration: of the whole model, otherwise of its text part."""
    for keys in (config, config.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(keys, Mapping) and isinstance(keys.get(key), str):
                return keys[key].removeprefix("torch.")
    return None


def values_by_dtype(headers: Iterable[Mapping[str, TensorEntry]]) -> dict[str, int]:
    """How many values some files have of each of the format's dtypes."""
    counts: Counter[str] = Counter()
    for header in headers:
        for entry in header.values():
            counts[entry.dtype] += math.prod(entry.shape)
    return dict(counts)


def settled_values(dtype: str | None, directory: Path) -> dict[str, int]:
    """The dtype of a fetched model whose weights are elsewhere, as counts of values.

    Args:
        dtype: The dtype, as source.json has it.
        directory: The fetched model.

    Raises:
        StudyError: If it was not known when the model was fetched.
    """
    names = {dtype: name for name, dtype in _COMPUTING.items()}
    if dtype not in names:
        raise StudyError(
            "The model's configuration names no dtype, and the hub did not say what its weights are stored in.",
            file=directory / "config.json",
            key="dtype",
            got=dtype,
            remedy=f"Remove {directory}, so that it is fetched anew with this; or set record_outliers.dtype to "
            "bfloat16, float16 or float32.",
        )
    return {names[dtype]: 1}


def main_dtype(values: Mapping[str, int], *, of: str) -> str:
    """The dtype of most values among those that a model can be computed in; float32 if there are none.

    Args:
        values: How many values there are of each of the format's dtypes.
        of: How to name the checkpoint in the log.
    """
    found = {dtype: values[dtype] for dtype in _COMPUTING if values.get(dtype)}
    if not found:
        log.warning("%s: the configuration names no dtype; it is computed in %s.", of, _WITHOUT)
        return _WITHOUT
    chosen = _COMPUTING[max(found, key=lambda dtype: found[dtype])]
    others = "" if len(found) == 1 else f" (of {', '.join(f'{n} values in {dtype}' for dtype, n in found.items())})"
    log.warning("%s: the configuration names no dtype; it is computed in %s, as its weights are%s.", of, chosen, others)
    return chosen
