"""What a folder or repository without safetensors holds instead, and the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from fnmatch import filter as matching
from pathlib import Path
from typing import NamedTuple

from outlier_moe.errors import StudyError

EXPECTED = "model.safetensors, or model.safetensors.index.json and what it names"

_CONVERT = "convert the checkpoint with save_pretrained and register its folder as a source of kind `directory`"


class _Format(NamedTuple):
    """A form in which weights are published that is not read."""

    patterns: tuple[str, ...]
    """Names of files by which the form is recognised."""
    problem: str
    """The problem, as a sentence."""
    remedy: str
    """The remedy."""


_PICKLES = (
    "A checkpoint has no safetensors.",
    "Other formats can run code and are never read. Name a revision that has safetensors (the hub's own conversion "
    f"often waits as refs/pr/N), or {_CONVERT}.",
)

# The first one that fits is told: what says more stands above.
_FORMATS = (
    _Format(
        ("adapter_config.json", "adapter_model.*"),
        "That is an adapter (PEFT, LoRA), and not a model.",
        "Merge it into its base model and register the folder: PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload().save_pretrained(folder).",
    ),
    _Format(
        ("model_index.json", "diffusion_pytorch_model*"),
        "That is a diffusion pipeline, and no language model.",
        "Take a decoder model.",
    ),
    _Format(
        ("*.gguf",),
        "That is a model in GGUF.",
        "Register the file, or the first of its parts: source: {kind: gguf, path: FILE}; a file of the hub comes with "
        "`hf download REPOSITORY FILE --local-dir FOLDER`.",
    ),
    _Format(("pytorch_model*", "flax_model*", "tf_model*"), *_PICKLES),
    _Format(
        ("consolidated*", "params.json"),
        "That is a checkpoint in its maker's own format (consolidated weights, params.json).",
        "Take the repository or revision in transformers' format, often named -hf; or convert it with the script "
        "convert_*_weights_to_hf.py of that family in transformers, and register the folder.",
    ),
    _Format(
        ("model.*.safetensors", "model.*-of-*.safetensors", "model.safetensors.index.*.json"),
        "That is a variant of a checkpoint, such as fp16, under a name of its own.",
        "Register a folder in which its files have the plain names, model.safetensors or model-00001-of-0000N."
        "safetensors with the index; links do.",
    ),
    _Format(
        ("weights.npz", "weights.*.safetensors"),
        "That is a model in MLX's format.",
        "Take the checkpoint that it was converted from; MLX's own dequantised export (mlx_lm.convert -d) will do.",
    ),
    _Format(
        ("*.distcp", "*_optim_states.pt", "mp_rank_*", "zero_to_fp32.py"),
        "That is the state of a training run (FSDP or DeepSpeed), and not a checkpoint of a model.",
        "Merge it (accelerate merge-weights, or zero_to_fp32.py), save it with save_pretrained, and register the "
        "folder.",
    ),
    _Format(
        ("*.onnx", "*.onnx_data", "openvino_model.*", "*.mlpackage", "*.tflite", "*.engine"),
        "That is a compiled or exported graph (ONNX and the like), whose parts cannot be observed.",
        "Take the checkpoint that it was exported from.",
    ),
    _Format(("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl"), *_PICKLES),
)


def no_safetensors(names: Collection[str], directory: Path, *, origin: str) -> StudyError:
    """The error for a checkpoint without safetensors.

    Args:
        names: All files of the repository or folder.
        directory: The folder, or what is here of a repository.
        origin: How to name it.
    """
    for look in (_broken_entry, _other_place):
        if (found := look(directory)) is not None:
            problem, got, remedy = found
            return StudyError(problem, file=origin, expected=EXPECTED, got=got, remedy=remedy)
    top = [name for name in names if "/" not in name]
    for form in _FORMATS:
        found_names = [name for pattern in form.patterns for name in sorted(matching(top, pattern))]
        if found_names:
            got = ", ".join(dict.fromkeys(found_names[:4])) + _base_model(directory, found_names)
            return StudyError(form.problem, file=origin, expected=EXPECTED, got=got, remedy=form.remedy)
    others = sorted(matching(top, "*.safetensors"))
    if others:
        remedy = f"If that is the model, name it model.safetensors (a link does); of several, {_CONVERT}."
        return StudyError(
            "The safetensors of a checkpoint have other names.",
            file=origin,
            expected=EXPECTED,
            got=", ".join(others[:4]),
            remedy=remedy,
        )
    return StudyError(
        "A checkpoint has no safetensors.",
        file=origin,
        expected=EXPECTED,
        got=("no weights among " + ", ".join(sorted(top)[:4])) if top else "no files",
        remedy=f"Name a folder or revision that has them, or {_CONVERT}.",
    )


def _broken_entry(directory: Path) -> tuple[str, str, str] | None:
    """The error for a link or folder in place of the weights."""
    for path in sorted(directory.glob("model*.safetensors*")):
        if path.is_symlink() and not path.exists():
            return (
                "A file of a checkpoint is a link to nothing.",
                f"{path.name}, a link to {path.readlink()}",
                "Have the link point to the file, or copy the file itself; `cp -L` and `rsync -L` follow links.",
            )
        if path.is_dir():
            inside = path / path.name
            return (
                "A folder has the name of a checkpoint's file.",
                f"{path.name}, a folder",
                f"Move {inside if inside.is_file() else 'the file'} to its place.",
            )
    return None


def _other_place(directory: Path) -> tuple[str, str, str] | None:
    """A checkpoint in a folder below: of a trainer's steps, or of the hub's cache."""
    if not directory.is_dir():
        return None
    key: Callable[[Path], list[int | str]] = lambda path: [  # noqa: E731
        int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())
    ]
    below = {
        path.parent
        for pattern in ("*/model*.safetensors", "snapshots/*/model*.safetensors")
        for path in directory.glob(pattern)
        if (path.parent / "config.json").exists()
    }
    if not below or any(directory.glob("model*.safetensors")):
        return None
    folders = sorted(below, key=key)
    return (
        "The checkpoint lies in a folder below this one.",
        ", ".join(path.relative_to(directory).as_posix() for path in folders[-4:]),
        f"Name that folder: {folders[-1]}",
    )


def _base_model(directory: Path, found: Collection[str]) -> str:
    if "adapter_config.json" not in found:
        return ""
    try:
        base = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f", of the base model {base}"
