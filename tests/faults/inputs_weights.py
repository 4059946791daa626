"""Checkpoints whose quantised weights cannot be read, or not rightly, by either driver."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from outlier_moe.architectures.model_class import read_config
from outlier_moe.planning.sizes import model_sizes
from outlier_moe.recording.resident import load_resident
from outlier_moe.recording.streamed import load_streamed
from outlier_moe.streaming.layer_store import REST
from tests.compressed import SCHEMES, compress, scheme
from tests.faults.wrong_inputs import Answer, WrongInput, called

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    dtype="bfloat16",
    architectures=["LlamaForCausalLM"],
)
QUERY = "model.layers.0.self_attn.q_proj"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
Tensors = dict[str, Tensor]
Change = Callable[[Tensors], object]
Asked = Literal["resident", "streamed", "plan"]


def ask_for(folder: Path, asked: Asked, tensors: Mapping[str, Tensor], section: dict[str, Any] | None) -> Answer:
    """Write a checkpoint and ask for its weights, or its sizes."""
    fields = CONFIG.to_dict() | ({} if section is None else {"quantization_config": section})
    (folder / "config.json").write_text(json.dumps(fields))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    if asked == "plan":
        return called(lambda: model_sizes(read_config(folder)))
    how: Any = {"dtype": "bfloat16", "device": torch.device("cpu")}
    if asked == "resident":
        return called(load_resident, folder, **how)

    def stream() -> None:
        with load_streamed(folder, **how) as store:
            for portion in (REST, *range(store.n_layers)):
                store.install(portion, store.read(portion))

    return called(stream)


def plain() -> Tensors:
    """The tensors of a tiny model."""
    torch.manual_seed(0)
    return dict(LlamaForCausalLM(CONFIG).bfloat16().state_dict())


def method(name: str, asked: Asked) -> WrongInput:
    """A checkpoint of a method that cannot be undone."""
    section = {"quant_method": name, "bits": 4, "load_in_4bit": True, "weights": "int4"}
    return WrongInput(
        f"weights: {name}, {asked}", lambda folder: ask_for(folder, asked, plain(), section), (name, "not quantised")
    )


def packed(
    what: str,
    says: tuple[str, ...],
    of: str = "pack int4 group",
    change: Change = len,
    asked: Asked = "streamed",
    **group: Any,
) -> WrongInput:
    """A checkpoint of compressed-tensors with something changed, in its tensors or its configuration."""

    def ask(folder: Path) -> Answer:
        tensors = plain()
        for name in [name for name in tensors if "_proj" in name]:
            parts = compress(tensors.pop(name), scheme(of))
            tensors |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        change(tensors)
        extra = group.get("section", {})
        changed = {key: value for key, value in group.items() if key != "section"}
        groups = {"group_0": {**SCHEMES[of], "targets": ["Linear"], **changed}}
        section = {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"], **extra}
        return ask_for(folder, asked, tensors, section)

    return WrongInput(f"weights: {what}", ask, says)


def fp8(
    what: str, says: tuple[str, ...], scale: Tensor | None, *, asked: Asked = "streamed", **others: Any
) -> WrongInput:
    """A checkpoint with one matrix of FP8 whose scale is amiss."""

    def ask(folder: Path) -> Answer:
        tensors = plain() | others.get("tensors", {})
        tensors[f"{QUERY}.weight"] = tensors[f"{QUERY}.weight"].to(torch.float8_e4m3fn)
        if scale is not None:
            tensors[f"{QUERY}.weight_scale"] = scale
        return ask_for(folder, asked, tensors, others.get("section", FP8))

    return WrongInput(f"weights: {what}", ask, says)


def lose(part: str) -> Change:
    """Take a part of a weight away."""
    return lambda tensors: tensors.pop(f"{QUERY}.{part}")


def remake(part: str, made: Callable[[Tensor], Tensor]) -> Change:
    """Make a part of a weight another."""
    return lambda tensors: tensors.update({f"{QUERY}.{part}": made(tensors[f"{QUERY}.{part}"])})


CASES = [
    *(method(name, "resident") for name in ("gptq", "awq", "bitsandbytes", "quanto", "hqq")),
    *(method(name, "plan") for name in ("gptq", "aqlm", "modelopt")),
    method("torchao", "streamed"),
    packed("NVFP4 without its second scale", (QUERY, "weight_global_scale"), "nvfp4", lose("weight_global_scale")),
    packed(
        "INT8 without its zero points, resident",
        (QUERY, "weight_zero_point"),
        "int-quantized int8 channel asymmetric",
        lose("weight_zero_point"),
        "resident",
    ),
    packed("INT4 without its scales", (QUERY, "weight_scale"), change=lose("weight_scale")),
    packed(
        "one scale for each row where each group has one",
        (QUERY, "scales of shape [64, 1]", "[64, 4]"),
        change=remake("weight_scale", lambda scale: scale[:, :1]),
        asked="resident",
    ),
    packed(
        "eight bits where the configuration says four",
        (QUERY, "weight_packed of shape [64, 16]", "[64, 8]"),
        change=remake("weight_packed", lambda packed: packed.repeat(1, 2)),
    ),
    packed("a module that is ignored and has scales", (QUERY, "ignored"), section={"ignore": [QUERY, "lm_head"]}),
    packed("a module that no group has", ("self_attn", "no group"), targets=["re:.*mlp.*"]),
    packed("the format marlin-24", ("marlin-24", "another format"), format="marlin-24", asked="resident"),
    packed(
        "weights that are sparse as well",
        ("sparse-24-bitmask", "another format"),
        asked="plan",
        section={"sparsity_config": {"format": "sparse-24-bitmask"}},
    ),
    packed(
        "weights that are rotated",
        ("rotated", "transform_config"),
        asked="resident",
        section={"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
    ),
    packed("a scheme of five thirds of a bit", ("cannot read", "num_bits"), asked="plan", weights={"num_bits": "5/3"}),
    packed("scales beside weights that are not rounded", ("_proj", "dense"), format="dense"),
    packed("a companion of an unknown name", (f"{QUERY}.weight_bias_2",), change=lambda tensors: tensors.update(
        {f"{QUERY}.weight_bias_2": torch.ones(1)}
    ), asked="resident"),
    fp8("FP8 without a scale", (f"{QUERY}.weight", "F8_E4M3"), None),
    fp8("FP8 that the configuration does not mention, resident", (QUERY,), None, asked="resident", section=None),
    fp8("FP8 scales for columns", (QUERY, "[1, 64]"), torch.ones(1, 64), asked="resident"),
    fp8("FP8 scales that are whole numbers", (QUERY, "int32"), torch.ones((), dtype=torch.int32)),
    fp8(
        "FP8 with two scales",
        (QUERY, "one scale"),
        torch.ones(()),
        tensors={f"{QUERY}.weight_scale_inv": torch.ones(())},
    ),
    fp8(
        "a scale that is multiplied into the activations",
        (f"{QUERY}.pre_quant_scale", "nowhere"),
        torch.ones(()),
        asked="resident",
        tensors={f"{QUERY}.pre_quant_scale": torch.ones(64)},
    ),
]  # fmt: skip
