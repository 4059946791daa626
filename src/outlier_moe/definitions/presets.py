"""The presets: what a study takes for an outlier feature. The workflow reads it: no tables, no arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from outlier_moe.definitions.taps import View

FirstToken = Literal["included", "excluded"]
FIRST_TOKENS: tuple[FirstToken, ...] = ("included", "excluded")

LEAST_LAYER_FRACTION = 0.05
LEAST_POSITION_FRACTION = 0.01
"""The lowest thresholds that can be asked for unless the study's own are lower: what lies below both is not kept."""


@dataclass(frozen=True)
class Preset:
    """One definition of an outlier feature."""

    name: str
    """Its name."""
    rule: Literal["systematic", "massive"]
    """By the fractions of layers and positions affected, or by the size against the hidden state's median."""
    view: View
    """The taps judged together."""
    magnitude: float
    """The |x| from which a value counts."""
    layers: Literal["decoder_layers", "sites"] = "decoder_layers"
    """What the layer fraction is taken over."""
    unit: Literal["feature", "feature_sequence"] = "feature"
    """What is counted; `feature_sequence` judges each sequence alone."""
    layer_fraction: float = 0.25
    """Least fraction of the layers affected."""
    position_fraction: float = 0.06
    """Least fraction of the positions affected."""
    median_ratio: float = 1000.0
    """For `massive`: least ratio of |x| to the median magnitude of the hidden state."""


def presets(study: Mapping[str, Any]) -> list[Preset]:
    """The presets of a study's configuration; what one leaves out is the study's own threshold."""
    shared = {key: study[key] for key in ("magnitude", "layer_fraction", "position_fraction")}
    chosen = study["filter_systematic"]["presets"]
    return [Preset(name=name, **{**shared, **definition}) for name, definition in chosen.items()]


def definition_facts(presets: Iterable[Preset]) -> dict[str, Any]:
    """What a table says of the definitions that it was made by."""
    return {"presets": [asdict(preset) for preset in presets]}


class CountShape(NamedTuple):
    """What of a preset decides its counts, the thresholds aside."""

    view: View
    layers: Literal["decoder_layers", "sites"]
    unit: Literal["feature", "feature_sequence"]

    @property
    def name(self) -> str:
        """Its name in files."""
        return "-".join(self)

    @classmethod
    def named(cls, name: str) -> CountShape:
        """The shape of a name."""
        return cls(*name.split("-"))  # type: ignore[arg-type]


def shape_of(preset: Preset) -> CountShape | None:
    """The counts that a preset is judged by; None for massive activations, which are no matter of counts."""
    return CountShape(preset.view, preset.layers, preset.unit) if preset.rule == "systematic" else None
