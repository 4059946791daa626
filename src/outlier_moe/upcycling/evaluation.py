"""Evaluation at a checkpoint: loss on held-out text, use of experts, and their distances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from outlier_moe.upcycling.language_loss import chosen_experts, next_token_loss
from outlier_moe.upcycling.pairs import has_experts


def evaluate(model: PreTrainedModel, held_out: Int[Tensor, "sequence position"], *, batch_size: int) -> dict[str, Any]:
    """The loss on held-out sequences, and for a mixture each layer's `load` (tokens by expert) and distances.

    Args:
        model: The model, in evaluation mode.
        held_out: The sequences, the same for every model that is to be compared.
        batch_size: How many go through it together.
    """
    batches = held_out.to(model.device).split(batch_size)
    top_k = getattr(model.config, "num_experts_per_tok", None) if has_experts(model.config) else None
    routers = {} if top_k is None else {"output_router_logits": True}
    total, loads = 0.0, None
    for batch in batches:
        with torch.no_grad():
            outputs = model(input_ids=batch, use_cache=False, **routers)
        total += next_token_loss(outputs.logits, batch).item() * len(batch)
        if top_k is not None:
            n_experts = outputs.router_logits[0].shape[-1]
            counted = [
                torch.bincount(chosen_experts(logits, top_k=top_k).flatten().cpu(), minlength=n_experts)
                for logits in outputs.router_logits
            ]
            loads = counted if loads is None else [a + b for a, b in zip(loads, counted, strict=True)]
    found: dict[str, Any] = {"held_out_loss_nats": total / len(held_out)}
    if loads is not None:
        distances = [expert_distances(layer.get_submodule("mlp.experts")) for layer in _layers(model)]
        found["layers"] = [
            {"load": load.tolist(), "distances": of_layer} for load, of_layer in zip(loads, distances, strict=True)
        ]
    return found


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule("model.layers").children())


def expert_distances(experts: nn.Module) -> list[float]:
    """The distance of each two experts' weights: that of the vectors of all of them, over the mean of both lengths.

    0 for twins, 2**0.5 for two that have nothing to do with each other.
    """
    stacks = [parameter.detach().float().flatten(1) for parameter in experts.parameters()]
    weights = torch.cat(stacks, dim=1)
    lengths = weights.norm(dim=1)
    # Differences are taken, not products: of near twins a product would leave nothing but rounding.
    return [
        ((weights[a] - weights[b]).norm() / (0.5 * (lengths[a] + lengths[b]))).item()
        for a, b in combinations(range(len(weights)), 2)
    ]


def greedy_samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, n_new: int, longest: int
) -> list[dict[str, str]]:
    """Greedy continuations of prompts: always the likeliest token.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: The prompts.
        n_new: Tokens to add.
        longest: Tokens that the model has seen together; earlier ones are forgotten.
    """
    samples = []
    for prompt in prompts:
        tokens = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
        n_given = tokens.shape[1]
        for _ in range(n_new):
            with torch.no_grad():
                logits = model(input_ids=tokens[:, -longest:], use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
        samples.append({"prompt": prompt, "sample": str(tokenizer.decode(tokens[0, n_given:].tolist()))})
    return samples
