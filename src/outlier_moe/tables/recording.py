"""Reading the tables of one recording, lazily, without anything that recorded them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import dataframely as dy
import polars as pl
import pyarrow as pa
from dataframely.exc import SchemaError, ValidationError

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.errors import StudyError
from outlier_moe.tables import moe as schemas_moe
from outlier_moe.tables import schemas
from outlier_moe.tables.files import check_table, schema_facts

FORMAT = 1
"""Version of the recording's tables; raised when an older reader would misread them."""


def again(directory: Path) -> str:
    """What to do about a recording that cannot be read: recording takes long, so a copy comes first."""
    return f"Put it back from a copy, if there is one; otherwise record it again: snakemake --force {directory}"


@dataclass(frozen=True)
class Recording:
    """The tables that `record_outliers` wrote for one model."""

    directory: Path
    """Their folder."""
    run: dict[str, Any]
    """The provenance, run.json."""

    @property
    def ladder(self) -> Ladder:
        """The edges that `n_positions` counts."""
        return Ladder(floor=self.run["floor"])

    def layer_outliers(self) -> pl.LazyFrame:
        """Rows of `schemas.LayerOutlier` of all layers."""
        return pl.concat(self.layers())

    def layers(self) -> list[pl.LazyFrame]:
        """Rows of `schemas.LayerOutlier`, layer by layer.

        Raises:
            StudyError: If a layer has none, or a table is damaged.
        """
        paths = sorted(self.directory.glob("layer_*.arrow"))
        if len(paths) != self.run["n_layers"]:
            raise StudyError(
                "A recording does not have a table for each layer.",
                file=self.directory,
                expected=f"{self.run['n_layers']} files layer_*.arrow",
                got=len(paths),
                remedy=again(self.directory),
            )
        return [self._scan(path.name, schemas.LayerOutlier) for path in paths]

    def any_layer_outliers(self) -> pl.LazyFrame:
        """Rows of `schemas.AnyLayerOutlier`."""
        return self._scan("any_layer.arrow", schemas.AnyLayerOutlier)

    def sites(self) -> pl.DataFrame:
        """The table `schemas.Site`."""
        return self._sites

    @cached_property
    def _sites(self) -> pl.DataFrame:
        # Asked for by every preset; reading and checking it takes longer than what most do with it.
        return self._read("sites.parquet", schemas.Site)

    def peaks(self) -> pl.DataFrame:
        """The table `schemas.Peak`."""
        return self._read("peaks.parquet", schemas.Peak)

    def sequences(self) -> pl.DataFrame:
        """The table `schemas.Sequence`."""
        return self._sequences

    @cached_property
    def _sequences(self) -> pl.DataFrame:
        return self._read("sequences.parquet", schemas.Sequence)

    def experts(self) -> pl.DataFrame | None:
        """The table `tables.moe.Expert`; none for a model without experts."""
        return self._of_experts("experts.parquet", schemas_moe.Expert)

    def routers(self) -> pl.DataFrame | None:
        """The table `tables.moe.Router`; None for a model without routers."""
        return self._of_experts("routers.parquet", schemas_moe.Router)

    def _of_experts(self, name: str, schema: type[dy.Schema]) -> pl.DataFrame | None:
        if self.run.get("experts") is None and not (self.directory / name).exists():
            return None
        return self._read(name, schema)

    def _scan(self, name: str, schema: type[dy.Schema]) -> pl.LazyFrame:
        path = self.directory / name
        try:
            check_table(path, remedy=again(self.directory))
            # Opening reads the footer, which a truncated file does not have; polars would find out only while
            # collecting.
            with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
                stored = reader.schema
        except (FileNotFoundError, pa.ArrowInvalid) as error:
            raise self.broken(path, str(error)) from error
        if set(stored.names) != set(schema.column_names()):
            raise self.broken(path, f"columns {', '.join(sorted(stored.names))}")
        facts = schema_facts(stored)
        if facts and facts["floor"] != self.run["floor"]:
            raise StudyError(
                "A table is counted from another floor than its recording says.",
                file=path,
                key="floor",
                expected=f"{self.run['floor']:g}, as in run.json",
                got=facts["floor"],
                remedy=again(self.directory),
            )
        return pl.scan_ipc(path, glob=False).select(schema.column_names())

    def _read(self, name: str, schema: type[dy.Schema]) -> pl.DataFrame:
        path = self.directory / name
        try:
            check_table(path, remedy=again(self.directory))
            return schema.validate(pl.read_parquet(path, glob=False))
        except (FileNotFoundError, pl.exceptions.PolarsError, ValidationError, SchemaError) as error:
            raise self.broken(path, str(error)) from error

    def broken(self, path: Path, got: str) -> StudyError:
        """The error for a table that cannot be read."""
        return StudyError(
            "A table of a recording cannot be read.",
            file=path,
            expected="a whole table",
            got=got,
            remedy=again(self.directory),
        )


def read_recording(directory: Path) -> Recording:
    """The recording in a folder.

    Raises:
        StudyError: If there is none, or it is of another format.
    """
    path = directory / "run.json"
    try:
        run = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StudyError(
            "There is no recording.",
            file=path,
            remedy="Run snakemake for this model; `outlier-moe models` lists what is done.",
        ) from error
    except ValueError as error:
        raise StudyError(
            "A recording's provenance is not JSON.", file=path, got=str(error), remedy=again(directory)
        ) from error
    if run.get("format") != FORMAT:
        raise StudyError(
            "A recording has another format.",
            file=path,
            key="format",
            expected=FORMAT,
            got=run.get("format"),
            remedy=again(directory),
        )
    return Recording(directory, run)


@contextmanager
def explain_damage(recording: Recording) -> Iterator[None]:
    """Tells of a table that turns out to be damaged while it is read: opening one looks at its end alone.

    Raises:
        StudyError: If one is.
    """
    try:
        yield
    # The second is what Polars' own code, which is no Python, ends with where bytes make no sense.
    except (pl.exceptions.ComputeError, pl.exceptions.PanicException) as error:
        raise recording.broken(recording.directory, f"{type(error).__name__}: {error}") from error
