"""Next-token losses from a backbone's hidden states, without the logits of a whole sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from outlier_moe.streaming.memory import release_freed_memory

# All float32 logits of one sequence of 2048 over a vocabulary of 200,000 take 1.6 GB; the head goes in slices of this.
LOGITS_BYTES = 32 * 2**20


@contextmanager
def _answering(backbone: nn.Module, outputs: ModelOutput) -> Iterator[None]:
    """Have the backbone answer with given outputs, so that the model's own head (scaling, soft cap) applies to them."""

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
    """
    n_sequences, n_positions = tokens.shape
    hidden: Float[Tensor, "sequence position feature"] = outputs["last_hidden_state"]
    total = torch.zeros(n_sequences, dtype=torch.float64)
    vocabulary = model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
    step = max(1, LOGITS_BYTES // (4 * vocabulary))
    # What the layers have left in the heaps is in pieces that the logits do not fit into.
    release_freed_memory()
    for row in range(n_sequences):
        for start in range(0, n_positions - 1, step):
            stop = min(start + step, n_positions - 1)
            sliced = type(outputs)(**{**outputs, "last_hidden_state": hidden[row : row + 1, start:stop]})
            with _answering(backbone, sliced):
                logits = model(input_ids=tokens[row : row + 1, start:stop], use_cache=False).logits
            # The head may lie on another card than the embedding.
            targets = tokens[row, start + 1 : stop + 1].to(logits.device)
            losses = cross_entropy(logits[0].float(), targets, reduction="none")
            total[row] += losses.double().sum().cpu()
    return total / (n_positions - 1)
