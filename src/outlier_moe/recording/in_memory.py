"""Recording a model that its user holds in memory: it is refused by name, or recorded and left as it was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from outlier_moe.architectures.other_kinds import refuse_other_kinds
from outlier_moe.architectures.structure import DecoderStructure, find_structure
from outlier_moe.architectures.transformers_private import experts_implementation_kept
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.recording.kept_recordings import MADE_FROM
from outlier_moe.recording.record import Loaded, write_recording
from outlier_moe.recording.resident import record_resident
from outlier_moe.recording.writer import Decode, RecordingWriter
from outlier_moe.sources.origin import Origin
from outlier_moe.sources.tokenization import TokenTable

_COMPUTED_IN = (torch.float32, torch.bfloat16, torch.float16)


class HeldModel(NamedTuple):
    """A model in memory that can be recorded."""

    model: PreTrainedModel
    """The model."""
    structure: DecoderStructure
    """Its parts."""
    embedding: nn.Embedding
    """What its tokens go into."""


def held_model(model: object) -> HeldModel:
    """A model in memory, if it is one that can be recorded.

    Raises:
        StudyError: If it is none of transformers' decoder language models with all its weights in memory.
    """
    if not isinstance(model, PreTrainedModel):
        raise _no_model(model)
    try:
        refuse_other_kinds(model.config)
    except StudyError as error:
        error.file = None
        raise
    embedding = model.get_input_embeddings()
    if model.get_output_embeddings() is None or not isinstance(embedding, nn.Embedding):
        raise StudyError(
            "The model has no language model's head, so that it gives no next-token loss.",
            key="model",
            expected="a decoder language model, such as ...ForCausalLM",
            got=type(model).__name__,
            remedy="Load the same checkpoint with AutoModelForCausalLM, or give its path or repository.",
        )
    _refuse_weights(model)
    return HeldModel(model, find_structure(model), embedding)


def _no_model(model: object) -> StudyError:
    remedy = "Give the transformers model itself, its folder, or its repository as owner/name."
    inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
    if hasattr(model, "merge_and_unload"):
        remedy = "Merge the adapter first: model.merge_and_unload() gives the model."
    elif isinstance(inner, PreTrainedModel):
        remedy = f"Give the model inside the {type(model).__name__}: hooks do not see through it."
    elif isinstance(model, type):
        remedy = "Give an instance: AutoModelForCausalLM.from_pretrained(...)."
    elif isinstance(getattr(model, "model", None), PreTrainedModel):
        remedy = f"Give the model inside the {type(model).__name__}: its attribute `model`."
    expected = "a transformers model, the path of one, or a repository of the hub"
    got = model.__name__ if isinstance(model, type) else type(model).__name__
    return StudyError("This is no model that can be recorded.", key="model", expected=expected, got=got, remedy=remedy)


def _refuse_weights(model: PreTrainedModel) -> None:
    """Refuse weights that are not here, or not as they are computed with."""
    by_path = "Give the model's path or repository: it is then read from its checkpoint"
    absent = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if absent:
        raise StudyError(
            "Weights of the model are not in memory.",
            key=absent[0],
            expected="every weight on a device",
            got=f"{len(absent)} on the meta device",
            remedy=f"{by_path}, layer by layer if it does not fit.",
        )
    odd = [(name, p.dtype) for name, p in model.named_parameters() if p.dtype not in _COMPUTED_IN]
    if getattr(model, "hf_quantizer", None) is not None or (odd and not all(d == torch.float64 for _, d in odd)):
        said = getattr(model.config, "quantization_config", None)
        method = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
        raise StudyError(
            "The model is quantised in memory.",
            key=odd[0][0] if odd else "quantization_config",
            expected="weights in float32, bfloat16 or float16",
            got=getattr(method, "value", method) or odd[0][1],
            remedy=f"{by_path} and dequantised layer by layer. Or load it without quantisation.",
        )
    if odd:
        raise StudyError(
            "The model computes in float64, which is not recorded.",
            key=odd[0][0],
            expected="weights in float32, bfloat16 or float16",
            got="float64",
            remedy="Give a copy in float32: copy.deepcopy(model).float().",
        )


def record_model(
    held: HeldModel, tokens: TokenTable, output: Path, options: RecordOptions, *, name: str, decode: Decode
) -> None:
    """Run a model in memory over tokens and write what its taps show; the model is left as it was found.

    Args:
        held: The model. It runs where it is, in its own precision.
        tokens: The sequences.
        output: The folder to write; it appears when it is whole.
        options: What to record.
        name: The model's name.
        decode: What turns tokens into text.

    Raises:
        StudyError: If an option asks for another device, precision or mode than the model's, or one sequence does not
            fit into memory.
    """
    model = held.model
    device = held.embedding.weight.device
    _refuse_options(model, options, device)
    started = time.monotonic()

    def run(writer: RecordingWriter, advance: Callable[[int], None]) -> dict[str, Any]:
        chunk = record_resident(model, held.structure, tokens.tokens, options, writer, advance=advance)
        return {"chunk": chunk, "bytes_read": 0}

    origin = Origin(
        model=name,
        kind="memory",
        name=str(model.name_or_path),
        revision=None,
        license=None,
        checkpoint=None,
        dtype=str(model.dtype).removeprefix("torch."),
        trust_remote_code=False,
        files=(),
    )
    made = {
        "tokens": tokens.metadata["tokens_sha256"],
        # Weights in memory have no digest: no other recording is taken for one of the same.
        "checkpoint": None,
    }
    notes = [tokens.metadata.get("tokenizer_note"), tokens.metadata.get("length_note")]
    facts = {"source": asdict(origin), "caveats": [note for note in notes if note is not None], MADE_FROM: made}
    loaded = Loaded(model, held.structure, device, "resident", run)
    with _left_as_found(model):
        write_recording(output, loaded, tokens, options, facts, name=name, decode=decode, started=started)


def _refuse_options(model: PreTrainedModel, options: RecordOptions, device: torch.device) -> None:
    """Refuse what a model that is loaded already cannot be asked for."""
    own = {"dtype": str(model.dtype).removeprefix("torch."), "device": device.type, "mode": "resident"}
    default = RecordOptions()
    for key, value in own.items():
        asked = getattr(options, key)
        if asked not in (getattr(default, key), value):
            raise StudyError(
                "A model in memory is recorded as it is.",
                key=key,
                expected=f"{value}, as the model is, or {getattr(default, key)}",
                got=asked,
                remedy=f"Leave {key} out, or give the model's path or repository, which is then loaded in that way.",
            )


@contextmanager
def _left_as_found(model: PreTrainedModel) -> Iterator[None]:
    """Have a model in evaluation mode, without dropout; each of its modules gets back the mode that it had."""
    training = [(module, module.training) for module in model.modules()]
    with experts_implementation_kept(model):
        model.eval()
        try:
            yield
        finally:
            for module, was_training in training:
                module.training = was_training
