"""From GGUF to config, tokenizer and float32 safetensors, by transformers' own reading, which is checked.

transformers leaves out what it does not know. So every tensor of the file must be used, every weight of the model must
come from it, and metadata that changes what is computed must be in the configuration.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from outlier_moe.architectures.model_class import model_class_for
from outlier_moe.errors import StudyError
from outlier_moe.machine.host_memory import available_bytes
from outlier_moe.machine.model_bars import model_bars_hidden
from outlier_moe.sources.checkpoint_files import WEIGHTS
from outlier_moe.sources.gguf_metadata import complete_config, refuse_ignored_tensors, refuse_unknown_architecture
from outlier_moe.sources.gguf_parts import PLAIN, gguf_files, join_parts, open_gguf, refuse_undecodable, value
from outlier_moe.sources.gguf_tokenizer import gguf_tokenizer

log = logging.getLogger(__name__)

CONVERSION = 2
"""Raised when a conversion would come out differently, so that an older one in the cache is not taken."""

_SAMPLE = "At 10:45,  12 of the 1 234 children's\n\n  3 books (“déjà vu”) were gone <|im_start|>!"


def convert(files: Sequence[Path], directory: Path, *, with_tokenizer: bool = True) -> str | None:
    """Write config, tokenizer and float32 safetensors of a GGUF model.

    Tied weights are written once. What was written is loaded again and held against the original.

    Args:
        files: The GGUF file, or its parts in order.
        directory: The folder to write to.
        with_tokenizer: Whether the file's tokenizer is written.

    Returns:
        The licence that the file names.

    Raises:
        StudyError: If it cannot be read so that every tensor and all that changes what is computed is used.
    """
    readers = [open_gguf(file) for file in files]
    first = readers[0]
    refuse_unknown_architecture(first, files[0])
    refuse_undecodable(readers, files)
    _refuse_too_large(readers, files[0], directory)
    with TemporaryDirectory(dir=directory) as scratch:
        whole = _one_file(readers, files, Path(scratch))
        config = complete_config(_read_config(whole, named=files[0]), first, files[0])
        model = _read_model(whole, config, files[0])
        tokenizer = gguf_tokenizer(whole, first, named=files[0]) if with_tokenizer else None
        names = [tensor.name for reader in readers for tensor in reader.tensors]
        refuse_ignored_tensors(model, names, value(first, "general.architecture"), file=files[0])
    _write(model, tokenizer, directory, files[0])
    return value(first, "general.license")


def gguf_config(path: Path) -> PreTrainedConfig:
    """The configuration of a GGUF model of one's own, as its conversion will have it.

    Raises:
        StudyError: If it is not there, or cannot be read.
    """
    files = gguf_files(path)
    readers = [open_gguf(file) for file in files]
    refuse_unknown_architecture(readers[0], files[0])
    config = complete_config(_read_config(files[0], named=files[0]), readers[0], files[0])
    # The head may lie in another part than the metadata.
    if any(tensor.name == "output.weight" for reader in readers for tensor in reader.tensors):
        config.tie_word_embeddings = False
    config.dtype = torch.float32
    return config


def _refuse_too_large(readers: Sequence[GGUFReader], file: Path, directory: Path) -> None:
    """Refuse what neither memory nor disk has room for as float32."""
    needed = 4 * sum(int(tensor.n_elements) for reader in readers for tensor in reader.tensors)
    for what, free in (("memory", available_bytes()), ("disk", shutil.disk_usage(directory).free)):
        if needed > free:
            raise StudyError(
                f"There is not enough {what} to turn a GGUF model into float32.",
                file=file,
                expected=f"{needed / 1e9:.1f} GB of {what}",
                got=f"{free / 1e9:.1f} GB free" + (f" at {directory}" if what == "disk" else ""),
                remedy="Convert it on a larger machine, move the cache (OUTLIER_MOE_CACHE), or take the checkpoint "
                "in safetensors, which can be streamed.",
            )


def _one_file(readers: Sequence[GGUFReader], files: Sequence[Path], scratch: Path) -> Path:
    """The file as transformers can read it: joined, and of a newer architecture as plain values."""
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    # This reading of transformers has a dequantisation of its own, which lacks types that gguf's has.
    as_values = is_gguf_arch_supported(value(readers[0], "general.architecture")) and any(
        tensor.tensor_type not in PLAIN for reader in readers for tensor in reader.tensors
    )
    if len(files) == 1 and not as_values:
        return files[0]
    join_parts(readers, scratch / "model.gguf", as_values=as_values)
    return scratch / "model.gguf"


def _read_config(file: Path, *, named: Path) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        raise _unreadable(named, error) from error
    try:
        model_class_for(config)
    except StudyError as error:
        error.file = named
        raise
    return config


def _read_model(whole: Path, config: PreTrainedConfig, file: Path) -> Any:
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        with model_bars_hidden():
            model, report = read(
                whole.parent,
                gguf_file=whole.name,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    # What transformers raises of a file that it cannot read is of many kinds.
    except Exception as error:
        raise _unreadable(file, error) from error
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if report[kind]:
            found = sorted(map(str, report[kind]))
            raise StudyError(
                "transformers does not read a GGUF file whole.",
                file=file,
                key=", ".join(found[:4]),
                expected=f"every weight of {type(model).__name__} from the file",
                got=f"{len(found)} {kind.replace('_', ' ')}",
                remedy="Take the checkpoint that it was made from, in safetensors.",
            )
    return model.eval()


def _unreadable(file: Path, error: Exception) -> StudyError:
    return StudyError(
        "transformers cannot read a GGUF file.",
        file=file,
        expected="a file that transformers knows how to read",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
        remedy="Take the checkpoint that it was made from, in safetensors.",
    )


def _write(model: Any, tokenizer: Any, directory: Path, file: Path) -> None:
    for reading in ("quantization_config", "_model_name_or_path"):
        model.config.__dict__.pop(reading, None)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    # save_pretrained refuses a model that came from a GGUF file.
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
    _refuse_differences(directory, model, tokenizer, file)


@torch.no_grad()
def _refuse_differences(directory: Path, model: Any, tokenizer: Any, file: Path) -> None:
    tokens = list(range(min(32, model.config.get_text_config().vocab_size)))
    if tokenizer is not None:
        tokens = _refuse_another_tokenizer(directory, tokenizer, file)
    with model_bars_hidden():
        reloaded = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    inputs = torch.tensor([tokens])
    if not torch.equal(reloaded(inputs).logits, model(inputs).logits):
        raise _differs("model", file)


def _refuse_another_tokenizer(directory: Path, tokenizer: Any, file: Path) -> list[int]:
    """Refuse a tokenizer that gives other tokens once it was written, or none; the tokens of the sample."""
    try:
        again = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        tokens = tokenizer(_SAMPLE)["input_ids"]
        # The file's own tokenizer counts: transformers cuts text otherwise for some families.
        written = Tokenizer.from_file(str(directory / "tokenizer.json")).encode(_SAMPLE).ids
        is_same = written == tokens and again.chat_template == tokenizer.chat_template
    # The tokenizers library raises plain exceptions.
    except Exception as error:
        raise _differs("tokenizer", file, got=f"{type(error).__name__}: {error}") from error
    if not is_same:
        raise _differs("tokenizer", file)
    return tokens


def _differs(what: str, file: Path, *, got: str | None = None) -> StudyError:
    return StudyError(
        f"The {what} that was written is not the one of the GGUF file.",
        file=file,
        expected=f"the same {'tokens' if what == 'tokenizer' else 'logits'} after writing and reading",
        got=got,
        remedy="Take the checkpoint that it was made from, in safetensors; a tokenizer of one's own goes into "
        "source.tokenizer.",
    )
