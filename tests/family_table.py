"""The table of families in the documentation. `python -m tests.family_table` writes it; a test holds it to date."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from outlier_moe.architectures.moe_hooks import moe_hooks, pin_experts
from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.architectures.tap_hooks import tap_hooks
from outlier_moe.definitions.taps import Tap
from outlier_moe.errors import StudyError
from tests import zoo
from tests.tap_oracle import Read, read_by_the_projections

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

HEAD = """# Families

Every row is a tiny random checkpoint that the tests run (`tests/unit/architectures/test_families.py`): the taps are
compared, bit for bit, with what the layer's own projections read, the experts' outputs with what their block puts out,
and the model's result with that of a run without hooks. Nothing in `outlier_moe` names a family but for the exceptions
in the last section. This page is written by `python -m tests.family_table`.

- **attn_in**, **mlp_in**: layers of the tiny model that have the tap. Where a layer reads several different tensors
  there, each element is the one of largest magnitude among them ("of several").
- **residual**: streams of the residual, if there are several: each stream's features are features of their own.
- **experts**: routed ones + identity ones + shared ones, and the layers that have them.
- **computed by**: what the record pins. `grouped_mm` is transformers' grouped product; `eager` the family's own code,
  whose experts run a second time to be recorded (but for Llama 4 and JetMoE).

Models by other names: Pythia is `gpt_neox`; GLM-4.5 and 4.7 are `glm4_moe` and `glm4_moe_lite`, GLM-5 is `glm_moe_dsa`
and `glm5_next`; DeepSeek-V3.1 and Kimi-K2 are `deepseek_v3`; Qwen3.5 is `qwen3_5_text` and `qwen3_5_moe`; Phi-3.5-MoE
is `phimoe`.

| family | attn_in | mlp_in | residual | experts | computed by |
|---|---|---|---|---|---|
"""

TAIL = """
`@towers` is the class with the towers for images and the like, given text alone. `+` names a variation of the
configuration.

## What is not supported, and why

| family | why |
|---|---|
| hrm_text | {hrm_text} |
| looped models in general | a decoder layer that runs more than once in a forward has no one depth: refused |
| openai-gpt, xlm, cpmant, rembert, roformer, megatron-bert, modernbert-decoder, mvp, prophetnet | they do not declare \
which modules are their decoder layers |
| bert, roberta, electra, ernie and their kin | encoders that can be run as decoders: the parts of their layers have \
names of their own; `residual` alone can be recorded |
| diffusion_gemma, reformer, encoder-decoder models | they cannot be run on tokens alone |
| git | its vision encoder is part of the decoder |

## Exceptions

- JetMoE's attention has experts of its own: they are no feed-forward experts and are not recorded.
- Llama 4 weights what its experts read: an expert's output has its gate in it.
- A token whose gate at an expert is exactly 0 (a product that underflows in bfloat16, say) gets nothing from it: it is
  left out of the expert's load, its peaks and its outlier tokens, although the router chose it.
- ZAYA may skip the experts: such tokens count for none.
- LongCat's identity experts give back what they read: their peaks are those of mlp_in.
- Nemotron-H and Muse Spark may run their experts in a latent space: their peaks are at features of that space.
- RWKV mixes each position with the one before first: attn_in is what its first matrix reads.
- Kimi-K2 (`kimi_k2`) is read as DeepSeek-V3, which it is.
- Factors that a family puts on the sum of its experts (laguna, minimax_m3_vl, step3p7) are not in the gates.
"""


class Seen(NamedTuple):
    """What one forward of a family shows."""

    structure: DecoderStructure
    widths: dict[Tap, set[int]]
    layers: dict[Tap, list[int]]
    read: Read


def look(name: str) -> Seen:
    """Run a variety with the hooks."""
    structure = find_structure(zoo.tiny_model(name))
    widths: dict[Tap, set[int]] = {"attn_in": set(), "mlp_in": set(), "residual": set()}
    layers: dict[Tap, list[int]] = {"attn_in": [], "mlp_in": [], "residual": []}

    def note(tap: Tap, layer: int, x: Tensor) -> None:
        widths[tap].add(x.shape[-1])
        layers[tap].append(layer)

    with (
        torch.no_grad(),
        read_by_the_projections(structure, d_model=zoo.D_MODEL, n_tokens=zoo.tokens().numel()) as read,
        tap_hooks(structure, ("attn_in", "mlp_in", "residual"), note),
        moe_hooks(structure, lambda outputs: None),
    ):
        structure.backbone(input_ids=zoo.tokens(), use_cache=False)
    return Seen(structure, widths, layers, read)


def row(name: str, seen: Seen) -> str:
    """A family's line of the table."""
    n_layers = len(seen.structure.layers)
    cells = [
        f"`{name}`",
        _sites(seen.layers["attn_in"], n_layers, seen.read.attn_in),
        _sites(seen.layers["mlp_in"], n_layers, seen.read.mlp_in),
        _streams(seen.widths["residual"]),
        _experts(seen.structure),
        pin_experts(seen.structure) or "",
    ]
    return "| " + " | ".join(cells) + " |"


def _sites(layers: list[int], n_layers: int, read: dict[int, list[Tensor]]) -> str:
    if not layers:
        return "none"
    several = any(not torch.equal(x, tensors[0]) for tensors in read.values() for x in tensors[1:])
    count = "all" if len(layers) == n_layers else f"{len(layers)} of {n_layers}"
    return f"{count}, of several" if several else count


def _streams(widths: set[int]) -> str:
    [width] = widths
    return f"{width // zoo.D_MODEL} streams" if width > zoo.D_MODEL else "one"


def _experts(structure: DecoderStructure) -> str:
    experts = find_experts(structure)
    if not experts:
        return ""
    first = next(iter(experts.values()))
    numbers = [first.n_routed - first.n_identity, first.n_identity, len(first.shared)]
    n_layers = len(structure.layers)
    where = "all layers" if len(experts) == n_layers else f"{len(experts)} of {n_layers} layers"
    return f"{' + '.join(map(str, numbers))}, {where}"


def page(rows: Iterable[str]) -> str:
    """The page with the lines of its table."""
    reasons = {}
    for name in zoo.NOT_SUPPORTED:
        try:
            find_structure(zoo.tiny_model(name))
        except StudyError as error:
            reasons[name] = f"{error.problem} ({error.got})"
    return HEAD + "".join(f"{line}\n" for line in rows) + TAIL.format(**reasons)


if __name__ == "__main__":
    PAGE.write_text(page(row(name, look(name)) for name in zoo.ZOO))
