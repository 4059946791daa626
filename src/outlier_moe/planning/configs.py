"""The configuration of a registered model, without its weights: all that a plan needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedConfig

from outlier_moe.architectures.model_class import read_config
from outlier_moe.config.registry import CheckpointSource, DirectorySource, GgufSource, HubSource, ModelEntry
from outlier_moe.errors import StudyError
from outlier_moe.sources.checkpoint_dtype import values_by_dtype
from outlier_moe.sources.checkpoint_files import weight_files
from outlier_moe.sources.checkpoint_map import map_checkpoint
from outlier_moe.sources.computing_dtype import settle_dtype, stated_dtype
from outlier_moe.sources.hub import cached_model, download, resolve_model, values_on_hub
from outlier_moe.sources.models import stored_values
from outlier_moe.sources.origin import FILE, read_origin

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


class FoundConfig(NamedTuple):
    """A model's configuration, and what is known of its files."""

    config: PreTrainedConfig
    """The configuration."""
    stored_bytes: int | None
    """Bytes of its weights as stored, if known."""
    place: str
    """Where the configuration is from."""


def find_config(entry: ModelEntry, models_directory: Path, *, ask_hub: bool = True) -> FoundConfig:
    """The configuration of a model: of its folder if it is fetched, else of its source.

    Args:
        entry: The model.
        models_directory: The folder with a folder for each fetched model.
        ask_hub: Whether the hub is asked; otherwise what its cache holds has to do.

    Raises:
        StudyError: If the model cannot be had, its source refuses it or does not answer, or its family is unknown.
    """
    fetched = models_directory / entry.id
    if (fetched / FILE).exists():
        origin = read_origin(fetched)
        config = read_config(fetched, trust_remote_code=entry.trust_remote_code)
        _settle(config, lambda: stored_values(fetched), of=entry.id)
        return FoundConfig(config, origin.weight_bytes or None, "fetched")
    match entry.source:
        case HubSource():
            return _from_hub(entry, entry.source) if ask_hub else _from_hubs_cache(entry, entry.source)
        case DirectorySource() | CheckpointSource():
            folder = entry.source.path.expanduser()
            config = read_config(folder, trust_remote_code=entry.trust_remote_code)
            if not any(folder.glob("*.safetensors")):
                # A configuration alone can be planned with.
                return FoundConfig(config, None, "folder")
            files = map_checkpoint(folder)
            _settle(config, lambda: values_by_dtype(files.counting()), of=entry.id)
            n_bytes = sum((folder / name).stat().st_size for name in files.headers)
            return FoundConfig(config, n_bytes or None, "folder")
        case GgufSource():
            # numpy's and gguf's reading, which other sources do without.
            from outlier_moe.sources.gguf_conversion import gguf_config

            return FoundConfig(gguf_config(entry.source.path.expanduser()), None, "file")
        case _:
            raise StudyError(
                "A model's configuration is not here yet.",
                file=fetched,
                key=f"models.{entry.id}",
                got=entry.unavailable,
                remedy=None if entry.unavailable else f"Run: snakemake {fetched}",
            )


def _from_hubs_cache(entry: ModelEntry, source: HubSource) -> FoundConfig:
    cached = cached_model(source.repo, source.revision)
    if cached is None or cached.folder is None:
        raise StudyError("The hub is not asked, and its cache does not hold the configuration.", got=source.repo)
    config = read_config(cached.folder, trust_remote_code=entry.trust_remote_code)
    _settle(config, lambda: values_on_hub(cached, key=f"models.{entry.id}.source"), of=entry.id)
    return FoundConfig(config, None, "hub")


def _settle(config: PreTrainedConfig, values: Callable[[], Mapping[str, int] | None], *, of: str) -> None:
    """Write the computing precision into a configuration, if it is known yet."""
    if stated_dtype(config) is None and (found := values()):
        settle_dtype(config, lambda: found, of=of)


def _from_hub(entry: ModelEntry, source: HubSource) -> FoundConfig:
    key = f"models.{entry.id}.source"
    snapshot = resolve_model(source.repo, source.revision, key=key)
    names = {file.name for file in snapshot.files}
    wanted = [name for name in (CONFIG, INDEX) if name in names]
    if entry.trust_remote_code:
        wanted += sorted(name for name in names if name.endswith(".py") and "/" not in name)
    if CONFIG not in names:
        raise StudyError(
            "A model has no configuration.",
            file=f"{source.repo} at {snapshot.commit}",
            expected=CONFIG,
            remedy="Name a revision that has one.",
        )
    folder = download(source.repo, snapshot.commit, wanted, key=key)
    config = read_config(folder, trust_remote_code=entry.trust_remote_code)
    _settle(config, lambda: values_on_hub(snapshot, key=key), of=entry.id)
    weights = set(weight_files(names, folder, origin=source.repo))
    sizes = [file.size for file in snapshot.files if file.name in weights]
    # Offline the hub's cache has only what was downloaded once.
    known = None if None in sizes else sum(size or 0 for size in sizes)
    return FoundConfig(config, known, "hub")
