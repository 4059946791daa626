"""What a model is called by: its family, kind, size and experts, as the registry says and as the model itself shows.

The registry may leave all of it out. What it says must not contradict the model: numbers of experts, kind and family
are held against it exactly. Published sizes are rounded, and some leave out embeddings or other towers: up to
`ROUNDED` they stand as they are, beyond it what was counted takes their place with a warning, and from `WRONG` on they
are an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from outlier_moe.errors import StudyError

log = logging.getLogger(__name__)

FILE = "labels.json"
"""What a fetched model's folder calls the file of them."""
ROUNDED = {"total_params_b": 1.1, "active_params_b": 1.35}
"""Up to this factor a published size is the same as a counted one."""
WRONG = 2.0
"""From this factor on it is another model's."""


class ModelLabels(NamedTuple):
    """What a model's configuration shows; None for what is not known."""

    family: str | None = None
    """Transformers' name of the architecture."""
    kind: str | None = None
    """`dense` or `moe`."""
    total_params_b: float | None = None
    """All parameters, in billions."""
    active_params_b: float | None = None
    """Those that work on one token, embeddings included, in billions."""
    n_experts: int | None = None
    """Routed experts of a layer."""
    top_k: int | None = None
    """Routed experts that work on one token."""
    n_shared_experts: int | None = None
    """Experts that work on every token."""
    other_families: tuple[str, ...] = ()
    """Other names of the same architecture, such as that of the text model inside a multimodal one."""


def agreed_labels(said: Mapping[str, Any], shown: ModelLabels, *, model: str, place: str | Path) -> dict[str, Any]:
    """The labels of an entry, completed by what the model shows.

    Args:
        said: What the registry says; None for what it leaves out. Other keys stay as they are.
        shown: What the model shows.
        model: Its id.
        place: Where it shows that.

    Raises:
        StudyError: If the two contradict each other: all contradictions at once.
    """
    wrong = {name: (said[name], value) for name, value in _known(shown, said) if _contradict(name, said, shown)}
    if wrong:
        raise StudyError(
            "What the registry says of a model is not what the model shows.",
            file="config/models.yaml",
            key=", ".join(f"models.{model}.{name}" for name in wrong),
            expected=", ".join(f"{name} {_shown(value)}" for name, (_, value) in wrong.items()) + f", as in {place}",
            got=", ".join(f"{name} {_shown(value)}" for name, (value, _) in wrong.items()),
            remedy="Correct these keys, or take them out: the model shows them itself.",
        )
    agreed = dict(said)
    for name, value in shown._asdict().items():
        if name == "other_families" or value is None:
            continue
        if said.get(name) is None:
            agreed[name] = value
        elif name in ROUNDED and _factor(said[name], value) > ROUNDED[name]:
            log.warning("%s has %s %g, not %g: the first is used", model, name, value, said[name])
            agreed[name] = value
    return agreed


def _known(shown: ModelLabels, said: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The labels that can be compared; a dense model has no experts."""
    values = shown._asdict()
    del values["other_families"]
    of_experts = ("n_experts", "top_k", "n_shared_experts")
    return [
        (name, value)
        for name, value in values.items()
        if said.get(name) is not None and (value is not None or (name in of_experts and shown.kind == "dense"))
    ]


def _contradict(name: str, said: Mapping[str, Any], shown: ModelLabels) -> bool:
    value, own = said[name], getattr(shown, name)
    if name in ROUNDED:
        return _factor(value, own) >= WRONG
    if name == "family":
        return value not in (own, *shown.other_families)
    return value != own


def _factor(one: float, other: float) -> float:
    return max(one / other, other / one) if min(one, other) > 0 else float("inf")


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def write_labels(labels: ModelLabels, directory: Path) -> None:
    """Write what a fetched model shows to its folder."""
    (directory / FILE).write_text(json.dumps(labels._asdict(), indent=1) + "\n", encoding="utf-8")


def read_labels(document: Mapping[str, Any]) -> ModelLabels:
    """Labels from their JSON; unknown keys are ignored."""
    known: dict[str, Any] = {name: document[name] for name in ModelLabels._fields if name in document}
    known["other_families"] = tuple(known.get("other_families", ()))
    return ModelLabels(**known)


def fetched_labels(directory: Path) -> ModelLabels | None:
    """What a fetched model shows; None if it is not fetched, or an older version fetched it."""
    try:
        return read_labels(json.loads((directory / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
