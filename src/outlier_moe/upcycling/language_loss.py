"""The loss of language models: next-token loss, and for mixtures a load-balancing loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, pad, softmax

from outlier_moe.training.steps import Batch, LossFunction, StepLoss

IGNORED = -100
"""The target of a position that predicts nothing."""


def language_loss(*, load_balancing: float = 0.0, top_k: int | None = None) -> LossFunction:
    """The loss function of a language model.

    Args:
        load_balancing: The weight of the load-balancing loss.
        top_k: Experts that work on a token; None for a model without experts.
    """

    def loss(model: nn.Module, batch: Batch) -> StepLoss:
        tokens = batch["input_ids"]
        routers = {} if top_k is None else {"output_router_logits": True}
        outputs = model(input_ids=tokens, use_cache=False, **routers)
        nats = next_token_loss(outputs.logits, tokens)
        if top_k is None:
            return StepLoss(nats, tokens.numel(), {})
        uneven = load_balancing_loss(outputs.router_logits, top_k=top_k)
        figures = {"loss_nats": nats.detach(), "load_balancing": uneven.detach()}
        total = nats + load_balancing * uneven if load_balancing else nats
        return StepLoss(total, tokens.numel(), figures)

    return loss


def next_token_loss(
    logits: Float[Tensor, "sequence position token"], tokens: Int[Tensor, "sequence position"]
) -> Float[Tensor, ""]:
    """Mean loss in nats over all tokens but each sequence's first."""
    # Targets move, not logits: the same but for the last position, and no copy of what is the largest tensor of a step.
    targets = pad(tokens[:, 1:], (0, 1), value=IGNORED)
    return cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def load_balancing_loss(router_logits: Sequence[Float[Tensor, "token expert"]], *, top_k: int) -> Float[Tensor, ""]:
    """The loss of Fedus et al. 2022 (equations 4 to 6), the mean over the layers: 1 if every expert has the same load.

    Transformers has one over all layers together, in which an expert that is idle in one layer makes up for one that
    is busy in another.
    """
    losses = []
    for logits in router_logits:
        probability = softmax(logits.float(), dim=-1)
        share = one_hot(chosen_experts(logits, top_k=top_k), logits.shape[-1]).float().mean(dim=(0, 1))
        losses.append(logits.shape[-1] * (share * probability.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def chosen_experts(logits: Float[Tensor, "token expert"], *, top_k: int) -> Int[Tensor, "token choice"]:
    """The experts that the router chooses, ties broken as the models break them."""
    return torch.topk(softmax(logits.detach().float(), dim=-1), top_k, dim=-1).indices
