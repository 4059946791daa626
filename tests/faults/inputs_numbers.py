"""Entries of the registry, labels that the model contradicts, and tables that are damaged or another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from transformers import LlamaConfig, MixtralConfig

from outlier_moe.definitions.presets import Preset, definition_facts
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.tables.files import write_table
from outlier_moe.tables.recording import read_recording
from tests.faults.wrong_inputs import ROOT, Answer, WrongInput, called, command, registered
from tests.recordings import made_up_activations, write_recording

PRESETS = [Preset("dettmers2022", "systematic", "linear_inputs", 6.0)]
CORPORA = {"text": {"source": {"kind": "files", "paths": ["a.txt"]}, "max_characters": 10}}
HUB = {"kind": "hub", "repo": "owner/name"}
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
}
Ask = Callable[[Path], Answer]


def entry(**keys: Any) -> Ask:
    """Ask for a registry of one model; its source and corpus are given unless set to None."""
    own = {"source": HUB, "corpus": "text"} | keys
    own = {key: value for key, value in own.items() if value is not None}
    return registered({"models": {"mine": own}, "corpora": CORPORA})


def planned(source: dict[str, Any] | None = None, *, experts: bool = True, **keys: Any) -> Ask:
    """Ask for the plan of a model whose folder has a configuration alone: a mixture of 4 experts, 2 at once."""

    def ask(folder: Path) -> Answer:
        config = MixtralConfig(**SMALL, num_key_value_heads=4, num_local_experts=4) if experts else LlamaConfig(**SMALL)
        config.save_pretrained(folder / "checkpoint")
        own = {"source": source or {"kind": "directory", "path": "checkpoint"}, "corpus": "text", **keys}
        (folder / "models.yaml").write_text(json.dumps({"models": {"mine": own}, "corpora": CORPORA}))
        places = ["--config", ROOT / "config/config.yaml", "--cluster", ROOT / "config/cluster.yaml"]
        places += ["--schemas", ROOT / "workflow/schemas", "--registry", "models.yaml"]
        return command("plan", "mine", "--no-hub", *map(str, places))

    return ask


def flipped(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Take away the second half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def emptied(path: Path) -> None:
    """Leave a file with nothing in it."""
    path.write_bytes(b"")


def written_over(path: Path) -> None:
    """Put a text where a table was."""
    path.write_text("feature,peak\n1,2.0\n" * 50)


def recorded(name: str, damage: Callable[[Path], object]) -> Ask:
    """Ask for the systematic features of a recording of which a file is damaged."""

    def ask(folder: Path) -> Answer:
        activations = made_up_activations(n_layers=2, shape=(2, 16, 24), seed=0)
        recording = write_recording(folder / "outliers", activations)
        damage(recording.directory / name)
        return called(lambda: systematic_features(read_recording(recording.directory), PRESETS))

    return ask


def of_run(**keys: Any) -> Callable[[Path], object]:
    """Set keys of run.json."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def looked_at(damage: Callable[[Path], object], *argv: str, name: str = "one/systematic.parquet") -> Ask:
    """Ask a command for a table of the results that is damaged."""

    def ask(folder: Path) -> Answer:
        recording = write_recording(
            folder / "results/one/outliers", made_up_activations(n_layers=2, shape=(2, 16, 24), seed=0)
        )
        (folder / "results/comparison").mkdir()
        table = systematic_features(recording, PRESETS)
        path = folder / "results" / name
        write_table(table, path, definition_facts(PRESETS))
        damage(path)
        return command(*argv, "--results", "results")

    return ask


def of_no_presets(path: Path) -> None:
    """Write a table without most of its columns."""
    write_table(pl.DataFrame({"feature": [1]}), path, {"presets": [asdict(PRESETS[0])]})


COMPARISON = "comparison/models.parquet"
CASES = [
    WrongInput("registry: a model without source and corpus", entry(source=None, corpus=None), ("source", "corpus")),
    WrongInput("registry: a model without corpus", entry(corpus=None), ("models.mine.corpus", "one of text")),
    WrongInput("registry: a model without source", entry(source=None), ("models.mine.source", "unavailable")),
    WrongInput("registry: a source and a reason", entry(unavailable="gone"), ("models.mine", "unavailable")),
    WrongInput("registry: a kind that is none", entry(kind="sparse"), ("kind", "dense", "moe")),
    WrongInput("registry: a dense model's experts", entry(kind="dense", n_experts=8), ("n_experts", "dense")),
    WrongInput("registry: more experts at once than all", entry(n_experts=4, top_k=8), ("top_k", "n_experts")),
    WrongInput(
        "registry: more active parameters than all",
        entry(total_params_b=1.0, active_params_b=7.0),
        ("active_params_b", "at most 1"),
    ),
    WrongInput("registry: a size in words", entry(total_params_b="7B"), ("total_params_b", "number", "7B")),
    WrongInput("registry: a size of nothing", entry(total_params_b=0), ("total_params_b", "0")),
    WrongInput("registry: half an expert", entry(n_experts=7.5), ("n_experts", "7.5")),
    WrongInput("labels: dense on a mixture", planned(kind="dense"), ("models.mine.kind", "moe", "take them out")),
    WrongInput("labels: half its experts", planned(n_experts=2, top_k=2), ("models.mine.n_experts", "4")),
    WrongInput("labels: other experts at once", planned(top_k=1), ("models.mine.top_k", "2")),
    WrongInput("labels: experts of a dense model", planned(experts=False, n_experts=8, top_k=2), ("n_experts none",)),
    WrongInput("labels: moe on a dense model", planned(experts=False, kind="moe"), ("models.mine.kind", "dense")),
    WrongInput("labels: another family", planned(family="qwen3_moe"), ("models.mine.family", "mixtral")),
    WrongInput("labels: 3.3 B for some thousands", planned(total_params_b=3.3), ("models.mine.total_params_b", "3.3")),
    WrongInput("labels: shared experts that are not", planned(n_shared_experts=2), ("n_shared_experts", "0")),
    WrongInput(
        "labels: everything of another model",
        planned(kind="dense", family="gpt2", total_params_b=1.5, active_params_b=1.5),
        ("models.mine.family", "models.mine.kind", "models.mine.total_params_b", "models.mine.active_params_b"),
    ),
    WrongInput("plan: a model of which nothing is known", planned(HUB), ("models.mine", "total_params_b")),
    WrongInput(
        "recording: a bit of a layer's table", recorded("layer_00.arrow", flipped), ("layer_00.arrow", "checksum")
    ),
    WrongInput("recording: a bit of the unions", recorded("any_layer.arrow", flipped), ("any_layer.arrow", "checksum")),
    WrongInput("recording: a bit of the sites", recorded("sites.parquet", flipped), ("sites.parquet", "checksum")),
    WrongInput("recording: half a table", recorded("layer_01.arrow", cut), ("layer_01.arrow", "record it again")),
    WrongInput("recording: an empty table", recorded("sites.parquet", emptied), ("sites.parquet", "empty file")),
    WrongInput("recording: a layer too few", recorded("layer_01.arrow", Path.unlink), ("2 files", "got: 1")),
    WrongInput("recording: another floor than its tables", recorded("run.json", of_run(floor=4.0)), ("floor", "4")),
    WrongInput("recording: of another format", recorded("run.json", of_run(format=99)), ("format", "99")),
    WrongInput("recording: a provenance cut short", recorded("run.json", cut), ("run.json", "record it again")),
    WrongInput("top: a flipped bit", looked_at(flipped, "top", "one"), ("systematic.parquet", "checksum", "--force")),
    WrongInput("top: half a table", looked_at(cut, "top", "one"), ("systematic.parquet", "snakemake --force")),
    WrongInput("top: a text for a table", looked_at(written_over, "top", "one"), ("systematic.parquet", "cannot be")),
    WrongInput("top: columns that are missing", looked_at(of_no_presets, "top", "one"), ("columns", "preset")),
    WrongInput("show: a flipped bit", looked_at(flipped, "show", name=COMPARISON), ("models.parquet", "checksum")),
    WrongInput("compare: a flipped bit", looked_at(flipped, "compare", name=COMPARISON), ("models.parquet", "crc32")),
    WrongInput("compare: an empty table", looked_at(emptied, "compare", name=COMPARISON), ("models.parquet", "empty")),
]
