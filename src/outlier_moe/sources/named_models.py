"""Models that are named where no registry is: by a folder, a GGUF file, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from outlier_moe.config.registry import DirectorySource, GgufSource, HubSource, ModelEntry, ModelSource
from outlier_moe.errors import StudyError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def named_model(name: str, *, trust_remote_code: bool = False) -> ModelEntry | None:
    """The model of a path or a repository; None if a name is neither.

    Args:
        name: A folder, a .gguf file, or owner/name on the hub. A path that exists is a path.
        trust_remote_code: Whether Python code of the repository may run.
    """
    path = Path(name).expanduser()
    source: ModelSource | None = None
    if path.suffix == ".gguf" and path.exists():
        source = GgufSource(path)
    elif path.is_dir():
        is_gguf = any(path.glob("*.gguf")) and not (path / "config.json").exists()
        source = GgufSource(path) if is_gguf else DirectorySource(path)
    elif _REPOSITORY.fullmatch(name) and not name.startswith("."):
        source = HubSource(name)
    if source is None:
        return None
    # As a folder may be named.
    shown = name.strip("/").replace("/", "--") if isinstance(source, HubSource) else path.absolute().name
    return ModelEntry(id=shown, source=source, trust_remote_code=trust_remote_code)


def named_entry(model: str, *, trust_remote_code: bool = False) -> ModelEntry:
    """The model of a path or a repository.

    Raises:
        StudyError: If it is neither.
    """
    entry = named_model(model, trust_remote_code=trust_remote_code)
    if entry is None:
        raise StudyError(
            "There is no such model.",
            key="model",
            expected="a folder, a .gguf file, owner/name on the hub, or in Python a transformers model",
            got=model,
            remedy="Correct the path; a relative one starts where you run.",
        )
    return entry
