"""GGUF files of one's own: which files make up a model, whether they are whole, and how parts become one file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from outlier_moe.errors import StudyError

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_PIECE = re.compile(r"(.+\.gguf)[.-](?:split-?|part-?)?([a-z]{1,2}|\d+(?:of\d+)?)")

PLAIN = frozenset({gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16})
"""Types that are values as they are."""


def gguf_files(path: Path) -> list[Path]:
    """The files of a model in GGUF: one, or its parts in order.

    Args:
        path: The file, any of its parts, or a folder with one model.

    Raises:
        StudyError: If there is none, a part is lacking, or a folder has several models.
    """
    if path.is_dir():
        path = _only_model(path)
    if piece := _PIECE.fullmatch(path.name):
        raise StudyError(
            "That is a piece of a GGUF file that was cut by size.",
            file=path,
            expected="a whole file, or parts named NAME-00001-of-0000N.gguf",
            got=path.name,
            remedy=f"Join the pieces in order: cat {piece[1]}* > {piece[1]}",
        )
    match = _PART.fullmatch(path.name)
    files = [path] if match is None else _parts(path.parent, match)
    for file in files:
        if not file.is_file():
            got = f"a link to {file.readlink()}, which is not there" if file.is_symlink() else "no such file"
            raise StudyError(
                "A GGUF file is not there.",
                file=file,
                expected="a .gguf file, or a folder with one model's",
                got=got,
                remedy="Correct the entry's source.path; a relative one starts at the working directory.",
            )
    return files


def _only_model(folder: Path) -> Path:
    models: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.glob("*.gguf")):
        match = _PART.fullmatch(file.name)
        # A vision model's projector lies beside its text model.
        if not file.name.startswith("mmproj"):
            models[match[1] if match else file.stem].append(file)
    if len(models) != 1:
        raise StudyError(
            "A folder does not have one model in GGUF.",
            file=folder,
            expected="the .gguf file, or parts, of one model",
            got=", ".join(files[0].name for files in list(models.values())[:4]) or "no .gguf file",
            remedy="That is a folder in transformers' format: write source: {kind: directory, path: ...}."
            if (folder / "config.json").exists() and not models
            else "Name the file itself in source.path; of parts, the first.",
        )
    (files,) = models.values()
    return files[0]


def _parts(folder: Path, match: re.Match[str]) -> list[Path]:
    n_parts = int(match[3])
    files = [folder / f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, n_parts + 1)]
    if lacking := [file.name for file in files if not file.is_file()]:
        raise StudyError(
            "Parts of a GGUF model are lacking.",
            file=folder / match[0],
            expected=f"{n_parts} parts side by side",
            got=f"{n_parts - len(lacking)} of them, without {', '.join(lacking[:3])}",
            remedy="Copy or download the lacking parts into the same folder.",
        )
    return files


def open_gguf(file: Path) -> gguf.GGUFReader:
    """A GGUF file, opened without reading tensors.

    Raises:
        StudyError: If it is none, or is cut short.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
        if start[:4] != b"GGUF":
            is_pointer = start.startswith(b"version https://git-lfs")
            raise ValueError("a pointer of Git LFS" if is_pointer else "no GGUF magic")
        reader = gguf.GGUFReader(file)
        if reader.byte_order == "S":
            raise ValueError("its bytes are in the order of another kind of machine")
    # The reader trips over a damaged file in many ways.
    except Exception as error:
        raise StudyError(
            "That is no whole GGUF file.",
            file=file,
            expected="a file that begins with GGUF and is as long as its header says",
            got=f"{type(error).__name__}: {error} ({file.stat().st_size} bytes)",
            remedy="Copy or download it anew: `git lfs pull`, or `hf download REPOSITORY FILE`.",
        ) from error
    return reader


def value(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """The value of a key in a file's metadata."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def refuse_undecodable(readers: Sequence[gguf.GGUFReader], files: Sequence[Path]) -> None:
    """Refuse tensors of a type that gguf cannot turn into values.

    Raises:
        StudyError: If there are some.
    """
    for reader, file in zip(readers, files, strict=True):
        for tensor in reader.tensors:
            if not _decodable(tensor.tensor_type):
                raise StudyError(
                    "A tensor of a GGUF file is of a type that gguf cannot turn into values.",
                    file=file,
                    key=tensor.name,
                    expected="a type of weights, such as F16, BF16, Q4_K or IQ4_XS",
                    got=tensor.tensor_type.name,
                    remedy="Take a file of another quantisation, or the checkpoint that it was made from.",
                )


def _decodable(kind: gguf.GGMLQuantizationType) -> bool:
    n_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    try:
        gguf.dequantize(np.zeros((1, n_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def join_parts(readers: Sequence[gguf.GGUFReader], target: Path, *, as_values: bool) -> None:
    """Write the parts of a model as one file.

    Args:
        readers: The parts, in order; the first has the metadata.
        target: The file to write.
        as_values: Whether quantised tensors become float32.

    Raises:
        StudyError: If the parts are not of one model.
    """
    _refuse_mixed(readers)
    first = readers[0]
    writer = gguf.GGUFWriter(target, value(first, "general.architecture"))
    for field in first.fields.values():
        if not field.name.startswith(("GGUF.", "split.")) and field.name != "general.architecture":
            kind = field.types[0]
            of = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        if as_values and tensor.tensor_type not in PLAIN:
            shape = [int(n) for n in reversed(tensor.shape)]
            writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(tensor.n_elements))
        else:
            stored = tensor.data
            writer.add_tensor_info(tensor.name, stored.shape, stored.dtype, stored.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        is_changed = as_values and tensor.tensor_type not in PLAIN
        writer.write_tensor_data(gguf.dequantize(tensor.data, tensor.tensor_type) if is_changed else tensor.data)
    writer.close()


def _refuse_mixed(readers: Sequence[gguf.GGUFReader]) -> None:
    """Refuse parts that are not those of one split, in its order and with all of its tensors."""
    if len(readers) == 1:
        return
    said = [(value(reader, "split.count"), value(reader, "split.no")) for reader in readers]
    n_tensors = sum(len(reader.tensors) for reader in readers)
    expected = [(len(readers), number) for number in range(len(readers))]
    total = value(readers[0], "split.tensors.count", n_tensors)
    if said != expected or total != n_tensors:
        raise StudyError(
            "The parts of a GGUF model do not belong together.",
            key="split.no, split.count, split.tensors.count",
            expected=f"parts 0 to {len(readers) - 1} of {len(readers)}, with {total} tensors",
            got=f"{', '.join(f'{number} of {count}' for count, number in said)}, with {n_tensors} tensors",
            remedy="Download all parts of one file anew; copies of another quantisation may be among them.",
        )
