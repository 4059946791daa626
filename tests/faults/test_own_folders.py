"""Folders of one's own: their weights have a SHA-256, and a copy of a hub's model is held against its figures."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from outlier_moe.config.registry import DirectorySource, HubSource, Registry
from outlier_moe.sources import cache
from outlier_moe.sources.cache import file_sha256
from outlier_moe.sources.models import fetch_model
from outlier_moe.sources.origin import read_origin
from outlier_moe.statistics.published import recorded
from tests.unit.sources.checkpoints import repository, write
from tests.unit.sources.entries import model_entry


def test_local_weights_have_a_sha256(tmp_path: Path) -> None:
    files = repository()
    fetch_model(model_entry(DirectorySource(write(tmp_path / "given", files))), tmp_path / "fetched")
    sums = {file.name: file.sha256 for file in read_origin(tmp_path / "fetched").files}
    assert sums["model.safetensors"] == hashlib.sha256(files["model.safetensors"]).hexdigest()


def test_a_large_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OUTLIER_MOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "LARGE_BYTES", 10)
    caplog.set_level(logging.INFO)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 100)
    assert {file_sha256(path) for _ in range(3)} == {hashlib.sha256(b"a" * 100).hexdigest()}
    assert caplog.text.count("for its SHA-256") == 1
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == hashlib.sha256(b"b" * 100).hexdigest()


def test_a_file_of_the_hubs_cache_is_not_read(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / ("ab" * 32)
    write(tmp_path, {f"blobs/{blob.name}": b"other"})
    (tmp_path / "model.safetensors").symlink_to(blob)
    assert file_sha256(tmp_path / "model.safetensors") == blob.name


@pytest.mark.parametrize("kind", ["directory", "gguf", "hub"])
def test_a_copy_goes_by_the_repository_that_it_is_of(kind: str) -> None:
    shape = {"n_sequences": 1, "sequence_length": 2, "d_model": 3, "n_layers": 4, "taps": [], "tokens": {}}
    run = {**shape, "source": {"kind": kind, "name": "mirror/of-it"}}
    assert recorded(run, copy_of="owner/model").repo == "owner/model"
    assert recorded(run).repo == ("mirror/of-it" if kind == "hub" else None)


def test_a_copy_goes_by_the_id_of_the_original() -> None:
    original = model_entry(HubSource("owner/model"), id="model")
    copy = model_entry(DirectorySource(Path("x")), id="mine", copy_of="owner/model")
    alone = model_entry(DirectorySource(Path("x")), id="alone", copy_of="owner/other")
    registry = Registry(Path("models.yaml"), {entry.id: entry for entry in (original, copy, alone)}, {})
    assert [registry.published_id(entry) for entry in (original, copy, alone)] == ["model", "model", "alone"]
