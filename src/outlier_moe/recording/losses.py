"""Next-token losses from a backbone's hidden states, without the logits of a whole sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from outlier_moe.planning.workload import CROSS_ENTROPY_BYTES, HEAD_BYTES


@contextmanager
def _answering(backbone: nn.Module, outputs: ModelOutput) -> Iterator[None]:
    """Replace the backbone by given outputs, so that the model's own head (scaling, soft cap) applies to them."""

    def answer(*args: object, **kwargs: object) -> ModelOutput:
        return outputs

    had_own = "forward" in vars(backbone)
    original = backbone.forward
    backbone.forward = answer
    try:
        yield
    finally:
        if had_own:
            backbone.forward = original
        else:
            del backbone.forward


def sequence_losses(
    model: PreTrainedModel,
    backbone: nn.Module,
    outputs: ModelOutput,
    tokens: Int[Tensor, "sequence position"],
) -> Float64[Tensor, " sequence"]:
    """Mean next-token loss of each sequence, in nats, over all its tokens but the first.

    Args:
        model: The causal language model whose head is used.
        backbone: The part of it that yields the hidden states.
        outputs: What the backbone gave for the tokens: its last hidden state, after the final norm.
        tokens: The tokens that went in.

    The head goes over as many positions at once as have no more than `HEAD_BYTES` of logits: all of a sequence of 2048
    over a vocabulary of 200,000 take 1.6 GB in float32.
    """
    n_sequences, n_positions = tokens.shape
    hidden: Float[Tensor, "sequence position feature"] = outputs["last_hidden_state"]
    total = torch.zeros(n_sequences, dtype=torch.float64)
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
    step = max(1, HEAD_BYTES // (hidden.element_size() * vocabulary))
    for row in range(n_sequences):
        for start in range(0, n_positions - 1, step):
            # The last position too, which predicts nothing: a product of all rows is faster than one of all but one.
            stop = min(start + step, n_positions)
            # Sliced and then given its first dimension, as torch goes the slow way with other strides.
            sliced = type(outputs)(**{**outputs, "last_hidden_state": hidden[row, start:stop].unsqueeze(0)})
            with _answering(backbone, sliced):
                logits = model(input_ids=tokens[row : row + 1, start:stop], use_cache=False).logits
            # The head may lie on another card than the embedding.
            targets = tokens[row, start + 1 : stop + 1].to(logits.device)
            total[row] += _total_loss(logits[0, : len(targets)], targets)
    return total / (n_positions - 1)


def _total_loss(logits: Float[Tensor, "position token"], targets: Int[Tensor, " position"]) -> Float64[Tensor, ""]:
    """The sum of the positions' losses, on the CPU."""
    step = max(1, CROSS_ENTROPY_BYTES // (4 * logits.shape[1]))
    pieces = zip(logits.split(step), targets.split(step), strict=True)
    return torch.cat([position_losses(piece.float(), wanted) for piece, wanted in pieces]).cpu().sum()


def position_losses(
    logits: Float32[Tensor, "position token"], targets: Int[Tensor, " position"]
) -> Float64[Tensor, " position"]:
    """The cross entropy of each position, in nats.

    torch's own `cross_entropy` adds up one term after the other in float32 on a CPU. Small terms are lost in a large
    sum: over a vocabulary of 262,144 each loss comes out some 3e-5 nats too low. `logsumexp` adds up in pairs.
    """
    wanted = logits.gather(1, targets[:, None].long())[:, 0]
    return logits.logsumexp(dim=-1).double() - wanted.double()
