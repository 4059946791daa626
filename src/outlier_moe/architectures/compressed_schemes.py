"""The groups of a compressed-tensors configuration: which scheme each module of the checkpoint has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import is_match, match_name, match_targets
from torch import nn

from outlier_moe.errors import StudyError

UNPLAIN_FORMATS = ("dense", "fakequant", "mixed-precision")
"""What compressed-tensors calls a format though it says nothing of how the values of a weight are stored."""


# The text models that a family has inside: compressed-tensors writes names as they were in the model that it had.
_HOMES = ("", "model.", "model.language_model.", "language_model.model.", "language_model.")


class CompressedSchemes:
    """The groups of a compressed-tensors configuration: which scheme each module of the checkpoint has.

    Args:
        said: The configuration's section.

    Raises:
        StudyError: If compressed-tensors cannot read it, or it names a format or transforms that cannot be undone.
    """

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._check_kinds(said)
        self._check_extras(said)
        try:
            self.config: QuantizationConfig = QuantizationConfig.model_validate(_without_order(said))
        except (ValueError, KeyError, NotImplementedError, TypeError) as error:
            raise _unreadable(
                "compressed-tensors cannot read the configuration of the quantisation.",
                key="quantization_config",
                got=" ".join(str(error).split())[:300],
            ) from error
        self.ordered = _has_order(said)
        self._check_patterns()
        for scheme in self.config.config_groups.values():
            self.format_of(scheme)  # type: ignore[arg-type]

    def _check_patterns(self) -> None:
        for name in (*self._scheme_of_target, *(self.config.ignore or ())):
            try:
                re.compile(name.removeprefix("re:") if name.startswith("re:") else "")
            except re.error as error:
                raise _unreadable(
                    "A pattern of the configuration of the quantisation is no regular expression.",
                    key="quantization_config",
                    got=f"{name} ({error})",
                ) from error

    @staticmethod
    def _check_kinds(said: Mapping[str, Any]) -> None:
        for key in ("config_groups", "sparsity_config", "transform_config"):
            if said.get(key) is not None and not isinstance(said[key], Mapping):
                raise _unreadable(
                    "compressed-tensors cannot read the configuration of the quantisation.",
                    key=f"quantization_config.{key}",
                    got=said[key],
                )

    @staticmethod
    def _check_extras(said: Mapping[str, Any]) -> None:
        sparsity = (said.get("sparsity_config") or {}).get("format", "dense")
        if sparsity != "dense":
            raise _unreadable(f"The weights are stored in the format {sparsity}.", key="sparsity_config", got=sparsity)
        if (said.get("transform_config") or {}).get("config_groups"):
            raise _unreadable(
                "The weights are rotated, and the model must rotate its activations to fit (transform_config).",
                key="quantization_config.transform_config",
                got=said["transform_config"]["config_groups"],
            )

    def format_of(self, scheme: QuantizationScheme) -> str:
        """How the weights of a scheme are stored.

        Raises:
            StudyError: If the installed compressed-tensors cannot undo that.
        """
        named = scheme.format or self.config.format
        name = str(getattr(named, "value", named))
        if scheme.weights is None:
            return "dense"
        if scheme.weights.num_bits < 1:
            bits = scheme.weights.num_bits
            raise _unreadable("A group has weights of no bits.", key="quantization_config.config_groups", got=bits)
        if name == "mixed-precision":
            name = infer_module_format(nn.Linear, scheme).value
        if name in UNPLAIN_FORMATS:
            return name
        if name not in BaseCompressor.registered_names():
            raise _unreadable(f"The weights are stored in the format {name}.", key="format", got=name)
        return name

    @cached_property
    def _scheme_of_target(self) -> dict[str, Any]:
        return {target: scheme for scheme in self.config.config_groups.values() for target in scheme.targets}  # type: ignore[union-attr]

    def ignores(self, names: tuple[str, ...], module: nn.Module) -> bool:
        """Whether a module is declared as not quantised."""
        return any(is_match(name, module, self.config.ignore or ()) for name in other_names(names))

    def scheme_of(self, names: tuple[str, ...], module: nn.Module) -> QuantizationScheme | None:
        """The scheme of a module, as compressed-tensors chooses it: by its name, by a pattern, then by its class.

        Args:
            names: What the module is called: in the checkpoint, then in the model.
            module: A module of its class.
        """
        known = other_names(names)
        by_name = [name for name in known if name in self._scheme_of_target]
        by_pattern = (match_targets(name, module, self._scheme_of_target) for name in known)
        matched = by_name or [
            found[0] for name, found in zip(known, by_pattern, strict=True) if found and match_name(name, found[0])
        ]
        if matched:
            return self._scheme_of_target[matched[0]]
        of_class = match_targets("", module, self._scheme_of_target)
        return self._scheme_of_target[of_class[0]] if of_class else None


def other_names(names: tuple[str, ...]) -> list[str]:
    """The names of a module: its own, and those it has where the text model is part of a larger model."""
    tails = [name[name.index("layers.") :] for name in names if "layers." in name]
    return list(dict.fromkeys([*names, *(home + tail for tail in tails[:1] for home in _HOMES)]))


def _without_order(said: Mapping[str, Any]) -> dict[str, Any]:
    """The section without `actorder`, which newer versions refuse: reading undoes that order by itself."""
    groups = {
        name: {**group, "weights": {**group["weights"], "actorder": None}}
        if isinstance(group, Mapping) and _group_has_order(group)
        else group
        for name, group in (said.get("config_groups") or {}).items()
    }
    return {**said, "config_groups": groups, "quant_method": "compressed-tensors"}


def _has_order(said: Mapping[str, Any]) -> bool:
    groups = (said.get("config_groups") or {}).values()
    return any(isinstance(group, Mapping) and _group_has_order(group) for group in groups)


def _group_has_order(group: Mapping[str, Any]) -> bool:
    weights = group.get("weights")
    return isinstance(weights, Mapping) and weights.get("actorder") in ("group", "dynamic", True)


def _unreadable(problem: str, *, key: str, got: object) -> StudyError:
    return StudyError(
        problem,
        file="config.json",
        key=key,
        expected="a format of compressed-tensors whose values and scales give plain weights",
        got=got,
        remedy="Take a checkpoint of the model that is not quantised, or in another format.",
    )
