"""Wrong and damaged results, where they are looked at: compare, show, top, verify, upcycling and the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from outlier_moe.tables.files import write_table
from outlier_moe.upcycling.summary import RunFiles, summarise_upcycling
from tests.faults.wrong_inputs import ROOT, Answer, WrongInput, called, command
from tests.unit.plots.comparisons import made_up_comparison
from tests.upcycling_tables import made_up_tables

REGISTRY = ("--registry", str(ROOT / "config/models.yaml"))
SCHEMA = ("--registry-schema", str(ROOT / "workflow/schemas/models.schema.yaml"))
MODELS = Path("results/comparison/models.parquet")


def compared(change: Callable[[Path], object], *argv: str) -> Callable[[Path], Answer]:
    """Ask a command for a comparison of seven models after something happened to its table."""

    def ask_for(folder: Path) -> Answer:
        path = folder / MODELS
        path.parent.mkdir(parents=True)
        write_table(made_up_comparison(7), path)
        change(path)
        return command(*argv, "--results", str(folder / "results"))

    return ask_for


def nothing(path: Path) -> None:
    """Leave the table as it is."""


def cut(path: Path) -> None:
    """Keep the first half of the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit_flipped(path: Path) -> None:
    """Flip a bit in the middle of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def another_table(path: Path) -> None:
    """Put another table in its place."""
    pl.DataFrame({"a": [1], "b": [2]}).write_parquet(path)


def a_folder(path: Path) -> None:
    """Put a folder in its place."""
    path.unlink()
    path.mkdir()


def no_model(path: Path) -> None:
    """Leave a table without a row."""
    write_table(pl.read_parquet(path).clear(), path)


def a_file_for_the_folder(path: Path) -> None:
    """Put a file where the folder of results is."""
    shutil.rmtree(path.parent.parent)
    path.parent.parent.write_text("results")


def broken_intervals(path: Path) -> None:
    """Put text where the intervals are."""
    path.with_name("intervals.parquet").write_text("no table")


def upcycled(change: Callable[[Path], object], *argv: str) -> Callable[[Path], Answer]:
    """Ask for the experiment's tables after something happened to their folder."""

    def ask_for(folder: Path) -> Answer:
        path = folder / "results/upcycle"
        path.mkdir(parents=True)
        for name, table in made_up_tables(["simple"]).items():
            write_table(table, path / f"{name}.parquet")
        change(path)
        return command("upcycling", *argv, "--results", str(folder / "results"))

    return ask_for


def damaged_run(name: str, content: str) -> Callable[[Path], Answer]:
    """Ask for the summary of a training run with a damaged file."""

    def ask_for(folder: Path) -> Answer:
        (folder / "evaluations.json").write_text(json.dumps([{"step": 1, "held_out_loss_nats": 1.0}]))
        (folder / "samples.json").write_text("[]")
        (folder / name).write_text(content)
        for table in ("training_history.parquet", "outliers.parquet"):
            write_table(pl.DataFrame({"step": [1], "loss": [1.0], "time_s": [1.0]}), folder / table)
        outliers = folder / "outliers.parquet"
        run = RunFiles("simple", 0, "dense", folder, folder, outliers, outliers, None)
        return called(summarise_upcycling, [run], preset="dettmers2022")

    return ask_for


def top_of(change: Callable[[Path], object], *argv: str) -> Callable[[Path], Answer]:
    """Ask for the features of a model whose table something happened to."""

    def ask_for(folder: Path) -> Answer:
        path = folder / "results/smollm2/systematic.parquet"
        path.parent.mkdir(parents=True)
        change(path)
        return command(*argv, "--results", str(folder / "results"), *REGISTRY, *SCHEMA)

    return ask_for


CASES = [
    WrongInput("compare: a table that is cut", compared(cut, "compare"), ("models.parquet", "cannot be read")),
    WrongInput(
        "compare: one bit flipped", compared(one_bit_flipped, "compare"), ("models.parquet", "damaged", "crc32")
    ),
    WrongInput("compare: another table", compared(another_table, "compare"), ("lacks columns", "n_systematic")),
    WrongInput("show: another table", compared(another_table, "show"), ("lacks columns", "n_systematic")),
    WrongInput("show: a folder for a table", compared(a_folder, "show"), ("models.parquet", "directory", "--results")),
    WrongInput("compare: a file for the results", compared(a_file_for_the_folder, "compare"), ("--results",)),
    WrongInput("compare: no model", compared(no_model, "compare"), ("no model", "compare_models.log")),
    WrongInput(
        "compare: broken intervals", compared(broken_intervals, "compare", "--include-dense"), ("intervals.parquet",)
    ),
    WrongInput(
        "compare: a preset that is misspelt",
        compared(nothing, "compare", "--preset", "dettmers2023"),
        ("dettmers2023", "did you mean 'dettmers2022'"),
    ),
    WrongInput(
        "compare: a model that it lacks", compared(nothing, "compare", "--models", "gpt5"), ("gpt5", "--models")
    ),
    WrongInput(
        "upcycling: samples of before",
        upcycled(lambda path: (path / "samples.parquet").unlink(), "--part", "samples"),
        ("samples.parquet", "snakemake upcycle"),
    ),
    WrongInput(
        "upcycling: another summary",
        upcycled(lambda path: another_table(path / "summary.parquet")),
        ("lacks columns", "loss_before_nats"),
    ),
    WrongInput("upcycling: a part that there is not", upcycled(nothing, "--part", "sample"), ("sample", "boundary")),
    WrongInput(
        "upcycling: evaluations that are cut",
        damaged_run("evaluations.json", '[{"step": 1'),
        ("evaluations.json", "snakemake --force"),
    ),
    WrongInput(
        "upcycling: samples that are cut",
        damaged_run("samples.json", '[{"prompt": "On'),
        ("samples.json", "snakemake --force"),
    ),
    WrongInput("top: another table", top_of(another_table, "top", "smollm2"), ("lacks columns", "is_systematic")),
    WrongInput("verify: no recording", top_of(nothing, "verify", "smollm2"), ("outliers", "snakemake")),
    WrongInput("verify: a model misspelt", top_of(nothing, "verify", "smolm2"), ("smolm2", "did you mean 'smollm2'")),
]
