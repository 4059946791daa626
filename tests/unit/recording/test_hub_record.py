"""The record stage on a model whose weights lie on a hub: the tables of the local run, with few shards on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from huggingface_hub import hf_hub_download

from outlier_moe.config.registry import DirectorySource, HubSource
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.errors import StudyError
from outlier_moe.recording.record import record_outliers
from outlier_moe.sources import hub as hub_source
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.origin import read_origin
from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens
from outlier_moe.streaming import hub_shards, pace
from outlier_moe.streaming.hub_shards import N_LAYERS_ON_DISK
from tests import zoo
from tests.hub_server import HubServer, hub_environment, reachable_hub
from tests.tiny_models import byte_tokenizer
from tests.unit.sources.entries import model_entry

REPO = "owner/mixtral"
LOCAL = RecordOptions(mode="resident", chunk=2, floor=0.5, n_peaks=3)
STREAMED = RecordOptions(mode="streamed", chunk=2, floor=0.5, n_peaks=3, evict=True)


class Study(NamedTuple):
    """A model on a hub, and its tables from a run on a copy of it."""

    hub: HubServer
    folder: Path
    tokens: Path
    shards: dict[str, int]
    expected: Path

    @property
    def fetched(self) -> Path:
        return self.folder / "fetched"

    @property
    def kept(self) -> Path:
        return self.folder / ".outliers.weights"

    def record(self, options: RecordOptions = STREAMED) -> dict[str, Any]:
        """Record from the hub; what run.json says."""
        record_outliers(self.fetched, self.tokens, self.folder / "outliers", options)
        assert not self.kept.exists() and not (self.folder / ".outliers.resume").exists()
        return json.loads((self.folder / "outliers" / "run.json").read_text())

    def downloads(self) -> list[str]:
        """The shards that were asked of the hub's storage."""
        paths = [r.path for r in self.hub.requests if r.method == "GET" and r.path.startswith("/storage/")]
        return [path.rpartition("/")[2] for path in paths]

    def assert_same_tables(self) -> None:
        """The tables are those of the local run, byte for byte."""
        got, expected = (
            {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "run.json"}
            for directory in (self.folder / "outliers", self.expected)
        )
        assert got.keys() == expected.keys() and "experts.parquet" in got
        assert [name for name in got if got[name] != expected[name]] == []


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, tokens, and the tables of a run on them."""
    folder = tmp_path_factory.mktemp("local")
    checkpoint = zoo.save_checkpoint("mixtral", folder / "checkpoint")
    byte_tokenizer("a text for a tokenizer").save_pretrained(checkpoint)
    tokens = (zoo.tokens(5).numpy() % 20).astype(np.uint32)
    shape = {"n_sequences": tokens.shape[0], "sequence_length": tokens.shape[1]}
    write_tokens(TokenTable(tokens, {**shape, "tokens_sha256": tokens_sha256(tokens)}), folder / "tokens.arrow")
    fetch_model(model_entry(DirectorySource(checkpoint)), folder / "fetched")
    record_outliers(folder / "fetched", folder / "tokens.arrow", folder / "expected", LOCAL)
    return folder


@pytest.fixture
def study(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    monkeypatch.setattr(hub_source, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr(pace, "LARGEST_SAVING_SHARE", float("inf"))
    sizes = {path.name: path.stat().st_size for path in (local / "checkpoint").glob("*.safetensors")}
    with reachable_hub(monkeypatch, tmp_path / "cache") as hub:
        hub.add_folder(REPO, local / "checkpoint")
        fetch_model(model_entry(HubSource(REPO)), tmp_path / "fetched")
        assert not [request for request in hub.requests if "/storage/" in request.path]
        yield Study(hub, tmp_path, local / "tokens.arrow", sizes, local / "expected")


def shards_of_each_layer(study: Study) -> list[set[str]]:
    """What each layer needs, and, last, what lies outside of them."""
    weight_map = json.loads((study.fetched / "model.safetensors.index.json").read_text())["weight_map"]
    needs: list[set[str]] = [set() for _ in range(zoo.N_LAYERS + 1)]
    for name, shard in weight_map.items():
        parts = name.split(".")
        needs[int(parts[2]) if parts[1] == "layers" else -1].add(shard)
    return needs


def test_evicted_shards_give_the_local_tables(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    *layers, rest = shards_of_each_layer(study)
    at_a_time: list[set[str]] = []

    def download(*args: Any, **options: Any) -> str:
        path = hf_hub_download(*args, **options)
        # Only here does the folder come to hold more.
        at_a_time.append({shard.name for shard in study.kept.glob("*.safetensors")})
        return path

    monkeypatch.setattr(hub_shards, "hf_hub_download", download)
    run = study.record()
    study.assert_same_tables()
    assert sorted(study.downloads()) == sorted(study.shards)
    windows = [rest.union(*layers[i : i + N_LAYERS_ON_DISK]) for i in range(len(layers))]
    assert all(any(here <= window for window in windows) for here in at_a_time)
    assert max(map(len, at_a_time)) <= max(map(len, windows)) < len(study.shards)
    assert not list((study.folder / "cache").rglob("*.safetensors"))

    assert (run["mode"], run["n_layers_resumed"]) == ("streamed", 0)
    assert run["source"]["revision"] == read_origin(study.fetched).revision
    recorded = {file["name"]: file for file in run["source"]["files"]}
    assert all(len(recorded[shard]["sha256"]) == 64 for shard in study.shards)
    assert 0.9 * sum(study.shards.values()) < run["bytes_read"] < sum(study.shards.values())


def test_without_eviction_the_cache_keeps_the_shards(study: Study) -> None:
    kept = RecordOptions(mode="streamed", chunk=2, floor=0.5, n_peaks=3)
    study.record(kept)
    study.assert_same_tables()
    assert {path.name for path in (study.folder / "cache").rglob("*.safetensors")} == study.shards.keys()
    before = len(study.hub.requests)
    study.record(kept)
    assert not [request for request in study.hub.requests[before:] if "/storage/" in request.path]
    # So does a run of the whole model.
    study.record(LOCAL)
    study.assert_same_tables()
    assert sorted(study.downloads()) == sorted(study.shards)


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 404}, {"status": 401}, {"cut_after": 100}])
def test_what_was_finished_before_the_hub_failed_is_not_downloaded_again(study: Study, fault: dict[str, int]) -> None:
    *layers, rest = shards_of_each_layer(study)
    failing = max(layers[4] - layers[3] - rest)
    study.hub.fail(failing, times=10**6, **fault)
    with pytest.raises(StudyError) as told:
        study.record()
    assert told.value.key == "models.tiny-0.1b.source.repo" and told.value.remedy
    assert not (study.folder / "outliers").exists()

    for known in study.hub._faults:
        known.times = 0
    study.hub.requests.clear()
    run = study.record()
    assert run["n_layers_resumed"] >= 3
    finished = set().union(*layers[: run["n_layers_resumed"]])
    needed = rest.union(*layers[run["n_layers_resumed"] :])
    assert not (finished - needed) & set(study.downloads())
    assert failing in study.downloads()
    study.assert_same_tables()


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from outlier_moe.recording.record import record_outliers
from outlier_moe.recording import resume
from outlier_moe.streaming import pace
from tests.unit.recording.test_hub_record import STREAMED

pace.LARGEST_SAVING_SHARE = float("inf")
plain = resume._save

def die_in_the_fourth_state(tensors, path):
    plain(tensors, path)
    if "state-0004" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)

resume._save = die_in_the_fourth_state
record_outliers(*map(Path, sys.argv[1:]), STREAMED)
"""


def test_a_killed_process_goes_on_without_downloading_what_it_had_finished(study: Study, tmp_path: Path) -> None:
    *layers, rest = shards_of_each_layer(study)
    places = [study.fetched, study.tokens, study.folder / "outliers"]
    environment = {**os.environ, **hub_environment(study.hub, tmp_path / "home")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", KILLED_RUN, *map(str, places)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (study.folder / "outliers").exists()
    study.hub.requests.clear()
    run = study.record()
    assert run["n_layers_resumed"] == 3
    finished = set().union(*layers[:3])
    assert not (finished - rest.union(*layers[3:])) & set(study.downloads())
    study.assert_same_tables()
