"""`source.json`: where a fetched model came from, and where its weights lie."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from outlier_moe.errors import StudyError

FILE = "source.json"


@dataclass(frozen=True)
class FetchedFile:
    """One file of a model."""

    name: str
    """Its name."""
    size: int | None
    """Bytes, where known."""
    sha256: str | None
    """Its SHA-256, where known."""


@dataclass(frozen=True)
class Origin:
    """Where a fetched model came from, and where its weights lie."""

    model: str
    """The model's id."""
    kind: str
    """The kind of source: hub, gguf_wheel, directory or checkpoint."""
    name: str
    """The repository, the package or the folder."""
    revision: str | None
    """The hub's commit, or the package's version."""
    license: str | None
    """The licence, where known."""
    checkpoint: str | None
    """The folder of the weights: `.` for this one, a path from here or an absolute one, null if they are on the hub."""
    dtype: str | None
    """What the checkpoint's weights are stored in, by its configuration."""
    trust_remote_code: bool
    """Whether Python code of the repository may run."""
    files: tuple[FetchedFile, ...]
    """Everything that belongs to the model, weights included."""

    @property
    def weight_bytes(self) -> int:
        """What the weights take as they are stored."""
        return sum(file.size or 0 for file in self.files if file.name.endswith(".safetensors"))


def write_origin(origin: Origin, directory: Path) -> None:
    """Write source.json into a model's folder."""
    (directory / FILE).write_text(json.dumps(asdict(origin), indent=1) + "\n", encoding="utf-8")


def read_origin(directory: Path) -> Origin:
    """What source.json of a model's folder says.

    Raises:
        StudyError: If it is missing or damaged.
    """
    path = directory / FILE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(FetchedFile(**file) for file in keys.pop("files"))
        return Origin(**keys, files=files)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StudyError(
            "A folder is not a fetched model.",
            file=path,
            expected="the source.json that fetch_model writes",
            got=f"{type(error).__name__}: {error}",
            remedy="Remove the model's folder and fetch it again.",
        ) from error
