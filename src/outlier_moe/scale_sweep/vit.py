"""The classifiers of the sweep: transformers' Vision Transformer, and how much memory a step of training takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, get_args

import torch
from transformers import ViTConfig, ViTForImageClassification

from outlier_moe.scale_sweep.study import Geometry, Scale
from outlier_moe.training.options import OptimizerName
from outlier_moe.training.parameter_counts import Computed, CountedModel, StepMemory

N_CLASSES = 10
SIZES: Mapping[str, Scale] = {
    "tiny": Scale(192, 6, 3),
    "small": Scale(384, 6, 6),
    "medium": Scale(512, 8, 8),
    "large": Scale(768, 8, 12),
    "xl": Scale(1024, 8, 16),
}
"""The published scales; the study's own are in its configuration."""
PUBLISHED = Geometry(image_size=32, n_channels=3, patch_size=4)


def vit_config(scale: Scale, geometry: Geometry, *, n_classes: int = N_CLASSES) -> ViTConfig:
    """The configuration of a classifier: query, key and value have biases, the feed-forward part is 4 d_model wide."""
    classes: dict[str, Any] = {"num_labels": n_classes}
    return ViTConfig(
        hidden_size=scale.d_model,
        num_hidden_layers=scale.n_layers,
        num_attention_heads=scale.n_heads,
        intermediate_size=4 * scale.d_model,
        image_size=geometry.image_size,
        num_channels=geometry.n_channels,
        patch_size=geometry.patch_size,
        qkv_bias=True,
        **classes,
    )


def new_vit(
    scale: Scale, geometry: Geometry, *, seed: int = 0, n_classes: int = N_CLASSES
) -> ViTForImageClassification:
    """A classifier with random weights."""
    torch.manual_seed(seed)
    return ViTForImageClassification(vit_config(scale, geometry, n_classes=n_classes))


def n_vit_parameters(scale: Scale, geometry: Geometry, *, n_classes: int = N_CLASSES) -> int:
    """The parameters of a classifier; on 32 x 32 x 3 pixels in patches of 4 they are 12 L d^2 + 13 L d + 127 d + 10."""
    d, layers = scale.d_model, scale.n_layers
    n_positions = geometry.patches_per_side**2 + 1
    patch = geometry.n_channels * geometry.patch_size**2
    # Patches and their bias, class token, positions, the last norm's two vectors, and the head.
    outside = d * (patch + 1 + 1 + n_positions + 2 + n_classes) + n_classes
    return 12 * layers * d**2 + 13 * layers * d + outside


STATES: Mapping[OptimizerName, float] = {"sgd": 1, "adamw": 2, "muon": 1, "soap": 2, "shampoo": 1, "ademamix": 3}
"""Numbers that an optimiser keeps for each weight that it takes, its square preconditioners aside. Shampoo keeps a
momentum also where it uses none."""


def step_memory(
    scale: Scale,
    geometry: Geometry,
    *,
    batch_size: int,
    optimizer: OptimizerName = "adamw",
    precision: Computed = "float32",
) -> StepMemory:
    """The estimated memory of a training step.

    Activations kept for the backward pass, in vectors of d_model a token and layer: the inputs of both norms and what
    the norms give (4), query, key, value and what attention mixes (4), the input and the output of the GELU (4 each).
    Attention itself keeps no weights (`scaled_dot_product_attention`). While the backward pass begins, the gradients
    of one layer's widest part (4 vectors, and 4 of its input) lie beside them. Nothing is computed twice.

    In bfloat16 (autocast) weights, gradients and the optimiser's state stay in float32, and so do the inputs of the
    norms; all else that is kept takes two bytes a number, a copy of each layer's matrices included.

    Args:
        scale: Of the model.
        geometry: Of the images.
        batch_size: Images that go through the model together.
        optimizer: Whose state is counted.
        precision: In which the model computes.
    """
    n_parameters = n_vit_parameters(scale, geometry)
    hidden = 12 * scale.n_layers * scale.d_model**2
    states = STATES[optimizer] * hidden + STATES["adamw" if optimizer == "muon" else optimizer] * (
        n_parameters - hidden
    )
    if optimizer in ("soap", "shampoo"):
        # A square matrix, and what is made of it, for each side of each matrix: four times two of d_model for query to
        # output, one of d_model and one of four times it for each of the other two.
        sides = 4 * 2 + 2 * (1 + 16)
        # Shampoo has them of vectors too: five biases and four parts of norms, and the bias of four times the width.
        sides += 9 + 16 if optimizer == "shampoo" else 0
        states += 2 * scale.n_layers * scale.d_model**2 * sides
    kept, copies = (4 * (16 * scale.n_layers + 2 * 4), 0)
    if precision == "bfloat16":
        # In float32: inputs of both norms. In bfloat16: their outputs, 6 around attention, both sides of the GELU.
        kept, copies = (2 * 4 + 2 * (2 + 6 + 8)) * scale.n_layers + 2 * 2 * 4, 2 * hidden
    return StepMemory(
        parameters=4 * n_parameters,
        gradients=4 * n_parameters,
        optimizer_state=int(4 * states),
        copies=copies,
        activations_per_sample=(geometry.patches_per_side**2 + 1) * scale.d_model * kept,
        batch_size=batch_size,
    )


def counted_models() -> Iterator[CountedModel]:
    """The published scales."""
    from outlier_moe.scale_sweep.scaling_rules import batch_size_for

    for name, scale in SIZES.items():
        batch_size = batch_size_for(n_vit_parameters(scale, PUBLISHED), n_train=45_000)
        memory = {
            precision: step_memory(scale, PUBLISHED, batch_size=batch_size, precision=precision)
            for precision in get_args(Computed)
        }
        yield CountedModel(
            experiment="scale_sweep",
            model=f"vit-{name}",
            kind="vit",
            d_model=scale.d_model,
            n_layers=scale.n_layers,
            build=partial(ViTForImageClassification, vit_config(scale, PUBLISHED)),
            memory=memory,
        )
