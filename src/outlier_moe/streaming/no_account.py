"""Tensors of a checkpoint that have no effect on what the text model computes.

All that is left out is named here. What is not, and becomes no weight of the model, is refused: it may be the scale of
a weight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

# What activations, or keys and values in the cache, are divided by before they are rounded. Here neither is rounded.
_ACTIVATION = re.compile(
    r"(^|[._])(input|output|activation|act|q|k|v|kv|kv_cache|k_cache|v_cache|prob|attn_output)"
    r"_(scale|scale_inv|scaling_factor|zero_point|global_scale)$|\.qscale_act$"
)
# Tables that are computed from the configuration, and masks of a model's earliest code.
_TABLES = re.compile(r"(^|\.)(inv_freq|original_inv_freq|masked_bias|position_ids)$")
# Heads that predict tokens further ahead, under names of their own: `mtp.`, `model.mtp_layers.`, `nextn_`.
_PREDICTION = re.compile(r"(^|\.)(mtp|nextn)(_[a-z_]+)?(\.|$)")
# What such a head has where it is numbered as one more decoder layer.
_JOINING = ({"eh_proj"}, {"enorm", "hnorm"})


def of_no_account(
    unexpected: Iterable[str],
    targets: Mapping[str, Sequence[str]],
    *,
    layers: re.Pattern[str],
    n_layers: int,
    is_quantized: bool,
) -> frozenset[str]:
    """Of some tensors that become no weight, those that have no effect.

    Args:
        unexpected: The tensors that become no weight.
        targets: What each would become.
        layers: Matches what is in a decoder layer; its group is the layer's number.
        n_layers: How many decoder layers the model has.
        is_quantized: Whether the configuration says that the checkpoint is; a scale without that may be a weight.
    """
    unexpected = list(unexpected)
    beyond = _prediction_layers([targets[name][0] for name in unexpected], layers, n_layers)

    def is_left(name: str) -> bool:
        target = targets[name][0]
        match = layers.match(target)
        return bool(
            (match and int(match[1]) in beyond)
            or _PREDICTION.search(name)
            or _TABLES.search(name)
            or (is_quantized and _ACTIVATION.search(name))
        )

    return frozenset(filter(is_left, unexpected))


def _prediction_layers(names: Collection[str], layers: re.Pattern[str], n_layers: int) -> set[int]:
    """Prediction layers after the last one, known by tensors that join a hidden state and a token's embedding."""
    found: dict[int, set[str]] = defaultdict(set)
    for name in names:
        if (match := layers.match(name)) and int(match[1]) >= n_layers:
            found[int(match[1])].update(name[match.end() :].split("."))
    return {layer for layer, inside in found.items() if any(joining <= inside for joining in _JOINING)}
