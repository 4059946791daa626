"""Values of finished layers are unknown, and whatever needs one that was not stored is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from outlier_moe.streaming.call_arguments import IndescribableError, describe, rebuild
from outlier_moe.streaming.forgotten import CannotResumeError, Forgotten, check_remembered, remember
from outlier_moe.streaming.lockstep import LayerCall

CPU = torch.device("cpu")


def forgotten(*shape: int, dtype: torch.dtype = torch.float32) -> Forgotten:
    return Forgotten.like(shape, dtype=dtype, device=CPU)


def test_what_follows_from_the_forgotten_is_forgotten() -> None:
    x = forgotten(2, 3)
    follows = [x + 1, torch.ones(2, 3) * x, x.float().mean(-1), x[:, :1], torch.cat([x, torch.ones(1, 3)]), x.T, -x]
    follows += [nn.functional.linear(x, torch.ones(4, 3)), torch.stack([x, x]), x.to(torch.bfloat16), x.clone()]
    assert all(isinstance(value, Forgotten) for value in follows)
    assert [tuple(value.shape) for value in follows[:5]] == [(2, 3), (2, 3), (2,), (2, 1), (3, 3)]
    assert follows[9].dtype == torch.bfloat16
    assert all(value.device == CPU for value in follows)


def test_shapes_dtypes_and_devices_are_known() -> None:
    x = forgotten(2, 3, dtype=torch.bfloat16)
    assert x.shape == (2, 3) and x.dtype == torch.bfloat16 and x.device == CPU and x.dim() == 2
    assert torch.arange(x.shape[1], device=x.device).tolist() == [0, 1, 2]
    assert not isinstance(torch.zeros(x.shape), Forgotten)


def test_changes_in_place_keep_the_object() -> None:
    x = forgotten(2, 3)
    same = x
    x += torch.ones(2, 3)
    assert x is same and isinstance(x, Forgotten)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.ones(2, 3).add_(x),
        lambda x: torch.ones(2, 3).copy_(x),
        lambda x: torch.zeros(2).__setitem__(0, x[0, 0]),
        lambda x: x.nonzero(),
        lambda x: x.tolist(),
        lambda x: torch.ones(2, 3)[x > 0],
    ],
)
def test_values_of_the_forgotten_cannot_be_used(use: Any) -> None:
    with pytest.raises(CannotResumeError), torch.no_grad():
        use(forgotten(2, 3))


def call(*args: Any, **kwargs: Any) -> LayerCall:
    return LayerCall(3, args, kwargs)


def stored(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return describe((args, kwargs), tensors), tensors


def test_stored_values_take_the_place_of_forgotten_ones_wherever_they_are_held() -> None:
    hidden, mask = forgotten(2, 3), torch.ones(3)
    held_elsewhere = [hidden]
    remember(call(hidden, mask=mask), *stored(torch.full((2, 3), 7.0), mask=torch.ones(3)))
    assert type(held_elsewhere[0]) is Tensor
    assert held_elsewhere[0].tolist() == [[7.0] * 3] * 2
    assert mask.tolist() == [1.0] * 3


def test_what_layers_share_in_mappings_is_filled_in() -> None:
    shared: dict[Any, Any] = {}
    keys = (torch.ones(2), torch.zeros(2))
    remember(call(torch.ones(1), shared=shared), *stored(torch.ones(1), shared={"sliding": keys, 3: None}))
    assert shared["sliding"][1].tolist() == [0.0, 0.0] and shared[3] is None


@pytest.mark.parametrize(
    "other",
    [
        call(torch.ones(2, 3), mask=torch.ones(4)),
        call(torch.ones(2, 3)),
        call(torch.ones(2, 3).double(), mask=torch.ones(3)),
        call(torch.ones(2, 3), mask=None),
        call((torch.ones(2, 3),), mask=torch.ones(3)),
    ],
)
def test_another_kind_of_call_is_refused(other: LayerCall) -> None:
    with pytest.raises(CannotResumeError, match="another way"):
        remember(other, *stored(torch.ones(2, 3), mask=torch.ones(3)))


def test_what_nobody_remembers_is_refused_later() -> None:
    check_remembered(None)
    check_remembered(call(torch.ones(2), [{"a": torch.ones(1)}]))
    with pytest.raises(CannotResumeError, match="layer 3 needs more"):
        check_remembered(call(torch.ones(2), [{"a": forgotten(1)}]))


def test_values_are_put_together_as_they_were() -> None:
    tensors: dict[str, Tensor] = {}
    value = (torch.ones(2), [None, True, 2, 0.5, "x"], {"a": (torch.zeros(1),), 4: {"b": torch.ones(1, 2)}})
    description = describe(value, tensors)
    again = rebuild(description, lambda tensor: tensors[tensor["tensor"]])
    assert again[0] is value[0] and again[1] == value[1]
    assert again[2]["a"][0] is value[2]["a"][0] and again[2][4]["b"] is value[2][4]["b"]


@pytest.mark.parametrize("value", [object(), [{"a": object()}], {(1, 2): torch.ones(1)}, ({1, 2},)])
def test_what_is_not_understood_is_refused(value: Any) -> None:
    with pytest.raises(IndescribableError):
        describe(value, {})
