"""Optimisers by name, each with the parameters that it is meant for; none is written here.

Torch has SGD, AdamW and Muon; the package pytorch-optimizer has Shampoo, SOAP and AdEMAMix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from outlier_moe.errors import StudyError
from outlier_moe.training.optimizers import adamw, decayed_groups
from outlier_moe.training.options import OptimizerName

MOMENTUM = 0.9


class FusedMatrix(NamedTuple):
    """A parameter that is several matrices, one above the other."""

    whole: nn.Parameter
    """The parameter."""
    n_parts: int
    """Number of matrices."""


class MuonOfParts(Muon):
    """Torch's Muon on matrices, some of which are parts of fused ones.

    Query, key and value in one parameter are three matrices: made orthogonal together, each would take its scale from
    the others.

    Args:
        matrices: Parameters that are a matrix each.
        fused: Parameters that are cut first.
        **options: Muon's.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], fused: Iterable[FusedMatrix], **options: Any) -> None:
        self.fused = [(matrix, [nn.Parameter(part) for part in _cut(matrix)]) for matrix in fused]
        super().__init__([*matrices, *(part for _, parts in self.fused for part in parts)], **options)

    def step(self, closure: Any = None) -> Any:
        """Take a step; what is done to a part is done to the parameter that it belongs to."""
        self._find_parts()
        for matrix, parts in self.fused:
            gradient = matrix.whole.grad
            for index, part in enumerate(parts):
                part.grad = None if gradient is None else gradient.chunk(matrix.n_parts)[index]
        return super().step(closure)

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over a state, each momentum to the device and the type of the parameter that it belongs to."""
        self._find_parts()
        super().load_state_dict(state_dict)

    def _find_parts(self) -> None:
        # Anew each time: a model that has moved to a device since has other memory.
        for matrix, parts in self.fused:
            for part, piece in zip(parts, _cut(matrix), strict=True):
                part.data = piece

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, those of the fused parameters too."""
        super().zero_grad(set_to_none)
        for matrix, _ in self.fused:
            if set_to_none:
                matrix.whole.grad = None
            elif matrix.whole.grad is not None:
                matrix.whole.grad.zero_()


def _cut(matrix: FusedMatrix) -> tuple[torch.Tensor, ...]:
    return matrix.whole.data.chunk(matrix.n_parts)


class HiddenMatrices(NamedTuple):
    """The matrices between a model's first and last layer, and what else it has."""

    matrices: list[nn.Parameter]
    """Parameters that are one matrix each."""
    fused: list[FusedMatrix]
    """Query, key and value in one."""
    others: list[nn.Parameter]
    """Embeddings, patches, class token, positions, head, norms and biases."""


def hidden_matrices(model: nn.Module, layers: nn.Module) -> HiddenMatrices:
    """Sort a model's parameters into hidden matrices and others.

    Args:
        model: The model.
        layers: Its layers, without what stands before and after them.
    """
    fused = [
        FusedMatrix(module.in_proj_weight, 3)
        for module in layers.modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    ]
    is_fused = {id(matrix.whole) for matrix in fused}
    matrices = [p for p in layers.parameters() if p.ndim == 2 and id(p) not in is_fused]
    taken = is_fused | {id(p) for p in matrices}
    return HiddenMatrices(matrices, fused, [p for p in model.parameters() if id(p) not in taken])


def named_optimizers(
    model: nn.Module, layers: nn.Module, name: OptimizerName, *, lr: float, adamw_lr: float, weight_decay: float
) -> list[Optimizer]:
    """The optimiser of a name for a model: one, or Muon with AdamW for what is no hidden matrix.

    Weight decay is of all that has two dimensions and more, never of norms and biases, and means the same to all: a
    step takes the learning rate times it off a weight (with SGD in the long run, through its momentum).

    Args:
        model: The model.
        layers: Its layers, without what stands before and after them.
        name: The optimiser.
        lr: Its peak learning rate.
        adamw_lr: That of AdamW beside Muon.
        weight_decay: The weight decay.

    Raises:
        StudyError: If the package that has it is not installed.
    """
    if name == "adamw":
        return [adamw(model, lr=lr, weight_decay=weight_decay)]
    if name == "muon":
        hidden = hidden_matrices(model, layers)
        muon = MuonOfParts(hidden.matrices, hidden.fused, lr=lr, weight_decay=weight_decay)
        return [muon, AdamW(decayed_groups(hidden.others, weight_decay), lr=adamw_lr, betas=(0.9, 0.95), fused=True)]
    if name == "sgd":
        # Its decay is part of the gradient, which momentum counts 1 / (1 - momentum) times in the end.
        groups = decayed_groups(model.parameters(), weight_decay * (1 - MOMENTUM))
        return [SGD(groups, lr=lr, momentum=MOMENTUM)]
    return [_of_library(name, decayed_groups(model.parameters(), weight_decay), lr)]


def _of_library(name: OptimizerName, groups: list[dict[str, Any]], lr: float) -> Optimizer:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise StudyError(
            "An optimiser's package is not installed.",
            key="optimizers",
            got=name,
            remedy="Install it: pip install 'pytorch-optimizer>=4.1,<5'",
        ) from error
    match name:
        case "shampoo":
            # Without momentum, which is no moving average there and lets it diverge; what is added to its
            # preconditioners keeps the roots of nearly singular ones finite.
            return pytorch_optimizer.Shampoo(groups, lr=lr, weight_decouple=True, matrix_eps=1e-3)
        case "soap":
            return pytorch_optimizer.SOAP(groups, lr=lr)
        case _:
            return pytorch_optimizer.AdEMAMix(groups, lr=lr, weight_decouple=True)
