"""The experiment's configuration, and checks that a schema cannot make. The workflow imports this module: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, get_args

from outlier_moe.errors import StudyError

Pair = Literal["simple", "smollm"]
Arm = Literal["dense", "zero", "router_noise", "drop", "virtual_group"]
PAIRS: tuple[Pair, ...] = get_args(Pair)
ARMS: tuple[Arm, ...] = get_args(Arm)

EXACT: tuple[Arm, ...] = ("zero", "router_noise", "virtual_group")
"""The arms whose mixture computes what the dense model does."""
BALANCED: tuple[Arm, ...] = ("router_noise", "drop", "virtual_group")
"""The arms that are trained with the load-balancing loss."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a dense model."""

    vocab_size: int
    """Tokens that it knows."""
    d_model: int
    """Features of the residual stream."""
    n_layers: int
    """Decoder layers."""
    n_heads: int
    """Attention heads."""
    d_ff: int
    """Features between the matrices of a feed-forward part."""
    sequence_length: int
    """Tokens of a training sequence."""


@dataclass(frozen=True)
class ExpertSizes:
    """The experts that take the place of each feed-forward part."""

    n_experts: int = 8
    """Experts of a layer."""
    top_k: int = 2
    """Experts that work on a token."""
    granularity: int = 1
    """Parts that a feed-forward part is cut into: an expert is as large as one."""


def model_sizes(upcycle: Mapping[str, Any], pair: Pair) -> ModelSizes:
    """The sizes of a pair's dense model in the section `upcycle` of the study."""
    model = upcycle["model"]
    return ModelSizes(**{**model, "d_ff": model["d_ff"][pair]})


def expert_sizes(upcycle: Mapping[str, Any], arm: Arm) -> ExpertSizes:
    """The experts of an arm in the section `upcycle` of the study."""
    experts = upcycle["experts"]
    if arm == "virtual_group":
        return ExpertSizes(**experts["virtual_group"])
    return ExpertSizes(experts["n_experts"], experts["top_k"])


def check_upcycling(upcycle: Mapping[str, Any], *, file: str) -> None:
    """Refuse contradictory options.

    Raises:
        StudyError: Names the key, what was expected and what came.
    """
    for what, key, expected, got, remedy in chain(
        _wrong_heads(upcycle["model"]), _wrong_experts(upcycle), _empty_parts(upcycle["training"])
    ):
        raise StudyError(
            f"The upcycling experiment contradicts itself: {what}.",
            file=file,
            key=f"upcycle.{key}",
            expected=expected,
            got=got,
            remedy=remedy,
        )


Mistake = tuple[str, str, str, int, str]
"""What is wrong, the key, what was expected, what came, and the remedy."""


def _wrong_heads(model: Mapping[str, Any]) -> Iterator[Mistake]:
    d_model, unit = model["d_model"], 2 * model["n_heads"]
    if d_model % unit:
        expected = f"a multiple of twice the {model['n_heads']} heads"
        remedy = f"Set d_model to {max(unit, unit * round(d_model / unit))}, for one, or n_heads to another number."
        yield "odd heads", "model.d_model", expected, d_model, remedy


def _wrong_experts(upcycle: Mapping[str, Any]) -> Iterator[Mistake]:
    for arm in upcycle["arms"]:
        if arm == "dense":
            continue
        experts = expert_sizes(upcycle, arm)
        section = "experts.virtual_group" if arm == "virtual_group" else "experts"
        if experts.top_k > experts.n_experts:
            expected, remedy = f"at most n_experts, {experts.n_experts}", f"Set top_k to {experts.n_experts} or less."
            yield "too many choices", f"{section}.top_k", expected, experts.top_k, remedy
        yield from _broken_groups(upcycle, experts, section)


def _broken_groups(upcycle: Mapping[str, Any], experts: ExpertSizes, section: str) -> Iterator[Mistake]:
    unit = experts.granularity
    for key, number in (("n_experts", experts.n_experts), ("top_k", experts.top_k)):
        if number % unit:
            expected = f"a multiple of the granularity, {unit}: whole copies of the dense model's"
            remedy = f"Set {key} to {number - number % unit + unit}, for one."
            yield "broken virtual groups", f"{section}.{key}", expected, number, remedy
    for pair in upcycle["pairs"]:
        d_ff = upcycle["model"]["d_ff"][pair]
        if d_ff % unit:
            remedy = f"Set it to {d_ff - d_ff % unit + unit}, for one."
            yield "broken experts", f"model.d_ff.{pair}", f"a multiple of the granularity, {unit}", d_ff, remedy


def _empty_parts(training: Mapping[str, Any]) -> Iterator[Mistake]:
    batch_size, n_parts = training["batch_size"], training["n_accumulate"]
    if n_parts > batch_size:
        remedy = f"Set n_accumulate to {batch_size} or less; {batch_size} takes the least memory."
        yield "empty parts of a batch", "training.n_accumulate", f"at most batch_size, {batch_size}", n_parts, remedy
