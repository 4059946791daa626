"""From a dense model to a mixture of experts: what is copied, and what arms do with feed-forward parts and router.

Embedding, head, attention and norms are copied. A feed-forward part becomes the experts of its layer:

- `zero`: copies, and a router of zeros: a softmax without preference, the same experts for every token.
- `router_noise`: copies, and a router of small random weights.
- `drop`: copies of which each forgets a random half of its inner features (Nakamura et al. 2025, arXiv 2502.19261,
  section 3): one set of them for all its matrices, drawn anew from a normal distribution with the mean and the standard
  deviation of what it replaces. The paper has no biases; those of the inner features are drawn anew likewise.
- `virtual_group`: the part is cut along its inner features, and each cut is an expert (He et al. 2024, arXiv
  2410.07524, section 3). A virtual group has every cut once and one row of the router for all of them, so that top-k
  takes whole groups. The gates of a group add up to its share, so that the output matrices are scaled by the number
  of cuts: then the mixture computes what the dense model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from outlier_moe.upcycling.pairs import model_config, new_model
from outlier_moe.upcycling.study import Arm, ExpertSizes, ModelSizes, Pair

FeedForward = dict[str, Tensor]
"""`up` and perhaps `gate`, [inner, feature]; `down`, [feature, inner]; perhaps `up_bias` and `down_bias`."""


@dataclass(frozen=True)
class TransferOptions:
    """Options of the arms that draw at random."""

    router_std: float = 0.02
    """Standard deviation of the router's random weights."""
    drop_ratio: float = 0.5
    """Share of its inner features that a copy forgets."""
    seed: int = 0
    """Decides the draws."""


def upcycled(
    dense: PreTrainedModel,
    *,
    pair: Pair,
    arm: Arm,
    sizes: ModelSizes,
    experts: ExpertSizes,
    options: TransferOptions,
) -> PreTrainedModel:
    """The mixture that an arm makes of a dense model.

    Args:
        dense: The dense model.
        pair: The pair it is of.
        arm: The way.
        sizes: Of the dense model.
        experts: Of the mixture.
        options: Of the arms that draw at random.
    """
    end_of_text: Any = dense.config.eos_token_id
    moe = new_model(model_config(pair, sizes, experts, end_of_text=end_of_text), seed=options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    with torch.no_grad():
        known = moe.state_dict()
        for name, value in dense.state_dict().items():
            if name in known:
                known[name].copy_(value)
        for dense_layer, moe_layer in zip(_layers(dense), _layers(moe), strict=True):
            whole = read_feed_forward(dense_layer.get_submodule("mlp"))
            for expert in range(experts.n_experts):
                own = _expert(whole, expert, arm=arm, experts=experts, options=options, generator=generator)
                write_expert(moe_layer.get_submodule("mlp.experts"), expert, own)
            _set_router(moe_layer.get_submodule("mlp.gate"), arm, experts, options, generator)
    return moe.eval()


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule("model.layers").children())


def read_feed_forward(mlp: nn.Module) -> FeedForward:
    """The matrices and biases of a dense feed-forward part."""
    read: FeedForward = {}
    for name in ("gate", "up", "down"):
        linear = getattr(mlp, f"{name}_proj", None)
        if isinstance(linear, nn.Linear):
            read[name] = linear.weight
            if linear.bias is not None:
                read[f"{name}_bias"] = linear.bias
    return read


def write_expert(experts: nn.Module, expert: int, own: FeedForward) -> None:
    """Make one of a layer's experts compute a feed-forward part."""
    stacks = dict(experts.named_parameters())
    if "gate" in own:
        stacks["gate_up_proj"][expert] = torch.cat([own["gate"], own["up"]])
    else:
        stacks["up_proj"][expert] = own["up"]
    stacks["down_proj"][expert] = own["down"]
    for bias in ("up_bias", "down_bias"):
        if bias in own:
            stacks[bias.replace("_", "_proj_")][expert] = own[bias]


def _expert(
    whole: FeedForward,
    expert: int,
    *,
    arm: Arm,
    experts: ExpertSizes,
    options: TransferOptions,
    generator: torch.Generator,
) -> FeedForward:
    if arm == "drop":
        return forgetful(whole, options.drop_ratio, generator)
    if arm == "virtual_group":
        return cut(whole, expert % experts.granularity, experts.granularity)
    return whole


def forgetful(whole: FeedForward, ratio: float, generator: torch.Generator) -> FeedForward:
    """A copy that draws a share of its inner features anew, by the statistics of what they were."""
    n_inner = len(whole["up"])
    drawn = torch.randperm(n_inner, generator=generator)[: int(ratio * n_inner)]
    copy = {name: value.clone() for name, value in whole.items()}
    if len(drawn) == 0:
        return copy
    for name, value in copy.items():
        if name == "down_bias":
            continue
        part = value[:, drawn] if name == "down" else value[drawn]
        # A single bias has no standard deviation.
        std = part.std() if part.numel() > 1 else torch.zeros(())
        fresh = torch.randn(part.shape, generator=generator) * std + part.mean()
        if name == "down":
            value[:, drawn] = fresh
        else:
            value[drawn] = fresh
    return copy


def cut(whole: FeedForward, index: int, n_cuts: int) -> FeedForward:
    """One cut of a feed-forward part along its inner features; the mean of all of them is the part."""
    part = {name: whole[name].chunk(n_cuts)[index] for name in ("gate", "up", "up_bias") if name in whole}
    part["down"] = whole["down"].chunk(n_cuts, dim=1)[index] * n_cuts
    # The gates add up to 1, and every expert that is chosen adds the bias.
    return part | {name: whole[name] for name in ("down_bias",) if name in whole}


def _set_router(
    router: nn.Module, arm: Arm, experts: ExpertSizes, options: TransferOptions, generator: torch.Generator
) -> None:
    weights = dict(router.named_parameters())
    for value in weights.values():
        value.zero_()
    if arm == "zero":
        return
    weight = weights["weight"]
    n_groups = experts.n_experts // experts.granularity
    rows = torch.randn(n_groups, weight.shape[1], generator=generator) * options.router_std
    weight.copy_(rows.repeat_interleave(experts.granularity, dim=0))
