"""The presets: definitions of an outlier feature. The workflow imports this module, so it needs no tables or arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from outlier_moe.definitions.taps import View
from outlier_moe.errors import StudyError, nearest

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
    """Whether fractions of layers and positions decide, or |x| relative to the hidden state's median."""
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


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
        Preset("survey2025", "systematic", "linear_inputs", 6.0, "sites", "feature_sequence"),
        Preset("residual", "systematic", "residual", 6.0),
        Preset("scale_free", "systematic", "residual_rms", 6.0),
        Preset("sun2024", "massive", "residual", 100.0),
    )
}
"""The definitions of the literature, by name, with their published thresholds."""

DEFAULT_PRESET = "dettmers2022"


def presets(study: Mapping[str, Any]) -> list[Preset]:
    """The presets of a study's configuration; what one leaves out is the study's own threshold."""
    shared = {key: study[key] for key in ("magnitude", "layer_fraction", "position_fraction")}
    chosen = study["filter_systematic"]["presets"]
    return [Preset(name=name, **{**shared, **definition}) for name, definition in chosen.items()]


def definition_facts(presets: Iterable[Preset]) -> dict[str, Any]:
    """The presets, for a table's metadata."""
    return {"presets": [asdict(preset) for preset in presets]}


class CountShape(NamedTuple):
    """The part of a preset that decides what is counted; thresholds are not in it."""

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
    """The counts that a preset is judged by; None for massive activations, which are judged by their peaks."""
    return CountShape(preset.view, preset.layers, preset.unit) if preset.rule == "systematic" else None


def preset_named(
    name: str,
    *,
    magnitude: float | None = None,
    layer_fraction: float | None = None,
    position_fraction: float | None = None,
) -> Preset:
    """A definition of the literature, with thresholds of one's own where they are given.

    Args:
        name: Its name.
        magnitude: The |x| from which a value counts; None for the published one.
        layer_fraction: The least fraction of the layers affected, likewise.
        position_fraction: The least fraction of the positions affected, likewise.

    Raises:
        StudyError: If there is no such definition, it has no such threshold, or a fraction is none.
    """
    if name not in PRESETS:
        raise StudyError(
            f"There is no preset '{name}'.",
            key="preset",
            expected=", ".join(PRESETS),
            got=name,
            remedy=nearest(str(name), PRESETS).capitalize(),
        )
    preset = PRESETS[name]
    thresholds = {
        "magnitude": magnitude,
        "layer_fraction": layer_fraction,
        "position_fraction": position_fraction,
    }
    given = {key: value for key, value in thresholds.items() if value is not None}
    for key, value in given.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "magnitude":
            # Whether it is an edge that was counted is the recording's to say.
            expected, is_right = "a positive number", is_number and 0 < value < float("inf")
        elif preset.rule == "massive":
            expected, is_right = f"no {key}: {name} judges by magnitude alone", False
        else:
            expected, is_right = "a number above 0, and at most 1", is_number and 0 < value <= 1
        if not is_right:
            raise StudyError("A threshold cannot be judged by.", key=key, expected=expected, got=repr(value))
    return replace(preset, **{key: float(value) for key, value in given.items()})
