"""Which parameters an optimiser takes, Muon's step against its definition, and that every one of them lowers a loss."""

from __future__ import annotations

import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

from outlier_moe.architectures.structure import find_structure
from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.study import OPTIMIZERS, Geometry, Scale
from outlier_moe.scale_sweep.vit import new_vit
from outlier_moe.training.loop import TrainingTask, train
from outlier_moe.training.named_optimizers import MuonOfParts, hidden_matrices, named_optimizers
from outlier_moe.training.options import OptimizerName, TrainingOptions
from outlier_moe.training.steps import StepLoss
from outlier_moe.upcycling.pairs import model_config, new_model
from outlier_moe.upcycling.study import ModelSizes

VIT = (Scale(16, 2, 2), Geometry(8, 1, 4))
TEXT = ModelSizes(vocab_size=40, d_model=16, n_layers=2, n_heads=2, d_ff=24, sequence_length=8)


def names(model: nn.Module, chosen: list[nn.Parameter]) -> set[str]:
    return {name for name, p in model.named_parameters() if any(p is other for other in chosen)}


def test_muon_takes_the_matrices_of_the_layers_and_adamw_all_else() -> None:
    model = new_vit(*VIT)
    hidden = hidden_matrices(model, find_structure(model).layers)
    places = ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"]
    assert names(model, hidden.matrices) == {f"vit.layers.{i}.{place}.weight" for i in (0, 1) for place in places}
    others = names(model, hidden.others)
    assert {"classifier.weight", "vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= others
    assert "vit.embeddings.patch_embeddings.projection.weight" in others
    assert len(hidden.matrices) + len(hidden.others) == len(list(model.parameters()))


def test_the_vit_has_no_fused_matrix_to_split() -> None:
    model = new_vit(*VIT)
    hidden = hidden_matrices(model, find_structure(model).layers)
    assert hidden.fused == []
    # Query, key and value are matrices of their own, each square.
    assert all(p.shape == (16, 16) for name, p in model.named_parameters() if "_proj.weight" in name)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The definition (Jordan et al. 2024): five Newton-Schulz steps of the gradient over its norm, in bfloat16."""
    # The momentum is a moving average of 0.95, and Nesterov's look ahead mixes it with the gradient likewise.
    x = (0.05 * matrix + 0.95 * 0.05 * matrix).bfloat16()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if transposed else x).float()


@pytest.mark.parametrize("shape", [(12, 6), (6, 12)])
def test_muons_first_step_is_its_definition(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight, gradient = nn.Parameter(torch.randn(shape)), torch.randn(shape)
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    MuonOfParts([weight], [], lr=0.1, weight_decay=0.2).step()
    update = orthogonalised(gradient) * max(1, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.2) - 0.1 * update, atol=5e-3, rtol=0)
    assert torch.linalg.svdvals(update).max() < 2**0.5 * 1.3, "singular values are made alike"


def test_a_fused_projection_is_split_before_it_is_made_orthogonal() -> None:
    model = new_model(model_config("simple", TEXT))
    layers = find_structure(model).layers
    fused = layers[0].get_submodule("self_attn.attention").in_proj_weight
    assert isinstance(fused, nn.Parameter)
    before = fused.detach().clone()
    muon, _ = named_optimizers(model, layers, "muon", lr=0.1, adamw_lr=0.01, weight_decay=0.0)
    tokens = torch.arange(16).reshape(2, 8)
    model(input_ids=tokens, labels=tokens).loss.backward()
    # A model that is moved has other memory than when the optimiser was made.
    fused.data = fused.data.clone()
    assert fused.grad is not None
    gradient = fused.grad.clone()
    muon.step()
    for part, old, new in zip(gradient.chunk(3), before.chunk(3), fused.detach().chunk(3), strict=True):
        alone = nn.Parameter(old.clone())
        alone.grad = part.clone()
        torch.optim.Muon([alone], lr=0.1, weight_decay=0.0).step()
        assert torch.equal(new, alone)
    muon.zero_grad()
    assert fused.grad is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_trains_and_goes_on_after_a_kill(name: OptimizerName, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    generator = torch.Generator().manual_seed(0)
    data = {"x": torch.randn(8, 1, 8, 8, generator=generator), "y": torch.arange(8) % 3}

    def run(folder: Path, dies_at: int | None = None) -> tuple[list[float], dict[str, torch.Tensor]]:
        model = new_vit(*VIT)
        rates = {"sgd": 0.1, "shampoo": 0.003}
        optimizers = named_optimizers(
            model, find_structure(model).layers, name, lr=rates.get(name, 0.01), adamw_lr=0.01, weight_decay=0.1
        )

        def batches(step: int) -> dict[str, torch.Tensor]:
            if step == dies_at:
                raise Killed
            return data

        def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> StepLoss:
            logits = model(pixel_values=batch["x"]).logits
            return StepLoss(nn.functional.cross_entropy(logits, batch["y"]), 8, {})

        options = TrainingOptions(n_steps=8, checkpoint_every=3, device="cpu")
        trained = train(TrainingTask(model, optimizers, batches, loss), options, folder)
        return trained.history["loss"].to_list(), {k: v.clone() for k, v in model.state_dict().items()}

    losses, weights = run(tmp_path / "whole")
    assert losses[-1] < losses[0]
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies_at=5)
    again, same = run(tmp_path / "killed")
    assert again == losses
    assert all(torch.equal(value, same[key]) for key, value in weights.items())


@pytest.mark.parametrize("name", ["shampoo", "soap"])
@pytest.mark.parametrize("kind", ["loss", "gradient", "squares"])
def test_preconditioners_do_not_fail_where_a_run_diverges(name: OptimizerName, kind: str, tmp_path: Path) -> None:
    model = new_vit(Scale(8, 1, 1), VIT[1])
    optimizers = named_optimizers(model, find_structure(model).layers, name, lr=0.01, adamw_lr=0.01, weight_decay=0.1)

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> StepLoss:
        plain = model(pixel_values=batch["x"]).logits.square().mean()
        wrong = {"loss": plain * torch.nan, "gradient": plain + (0 * plain).sqrt(), "squares": plain * 1e30}
        return StepLoss(wrong[kind], 1, {})

    options = TrainingOptions(n_steps=2, max_gradient_norm=None, checkpoint_every=2, device="cpu")
    data = {"x": torch.ones(2, 1, 8, 8)}
    trained = train(TrainingTask(model, optimizers, lambda step: data, loss), options, tmp_path)
    assert trained.diverged_at is not None


def test_the_state_of_fused_parts_goes_where_the_model_went() -> None:
    def moved() -> tuple[nn.Module, MuonOfParts]:
        model = new_model(model_config("simple", TEXT))
        muon, _ = named_optimizers(model, find_structure(model).layers, "muon", lr=0.1, adamw_lr=0.01, weight_decay=0.0)
        assert isinstance(muon, MuonOfParts)
        # As to another device: what the optimiser was made of is left behind.
        return model.double(), muon

    def step(model: nn.Module, muon: MuonOfParts) -> None:
        tokens = torch.arange(16).reshape(2, 8)
        model(input_ids=tokens, labels=tokens).loss.backward()
        muon.step()
        muon.zero_grad()

    model, muon = moved()
    step(model, muon)
    again, resumed = moved()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(deepcopy(muon.state_dict()))
    step(model, muon)
    step(again, resumed)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    model = new_vit(*VIT)
    with pytest.raises(StudyError, match="pip install 'pytorch-optimizer"):
        named_optimizers(model, find_structure(model).layers, "soap", lr=0.1, adamw_lr=0.1, weight_decay=0.0)
