"""Shards come from the hub before they are needed, go when they are not, and a hub that fails is given time."""

from __future__ import annotations

import errno
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from outlier_moe.errors import StudyError
from outlier_moe.sources import hub as hub_source
from outlier_moe.sources.checkpoint_files import INDEX
from outlier_moe.sources.origin import FetchedFile, Origin, read_origin, write_origin
from outlier_moe.streaming import hub_shards
from outlier_moe.streaming.hub_shards import HubShards, fetched_shards
from outlier_moe.streaming.layer_store import REST
from outlier_moe.streaming.shards import LocalShards
from tests import zoo
from tests.hub_server import HubServer, reachable_hub
from tests.streaming import all_equal, open_store, ready_lockstep, resident_hidden, streamed_hidden

REPO = "somebody/llama"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub_source, "WAITS_S", (0.0, 0.0, 0.0))
    with reachable_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return zoo.save_checkpoint("llama", tmp_path / "checkpoint")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Where a fetched model is: all but its shards."""
    return tmp_path / "small"


def shards(
    hub: HubServer, checkpoint: Path, small: Path, *, evict: bool | Literal["auto"] = False, **options: Any
) -> HubShards:
    if not small.exists():
        shutil.copytree(checkpoint, small, ignore=shutil.ignore_patterns("*.safetensors"))
        repository = hub.add_folder(REPO, checkpoint, **options)
        files = [FetchedFile(name, len(content), None) for name, content in repository.files.items()]
        known = {"license": None, "checkpoint": None, "dtype": None, "trust_remote_code": False}
        write_origin(Origin("llama", "hub", REPO, repository.commit, files=tuple(files), **known), small)
    source = fetched_shards(small, small.with_name("shards"), evict=evict)
    assert isinstance(source, HubShards)
    return source


def on_disk(small: Path) -> set[str]:
    """The shards in the folder for those that are evicted, and in the hub's cache."""
    folders = (small.with_name("shards"), small.with_name("cache"))
    return {path.name for folder in folders for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("evict", [False, True])
def test_a_model_streams_from_the_hub(evict: bool, hub: HubServer, checkpoint: Path, small: Path) -> None:
    with open_store(shards(hub, checkpoint, small, evict=evict)) as store:
        assert all_equal(streamed_hidden(store), resident_hidden(checkpoint))
    names = {path.name for path in checkpoint.glob("*.safetensors")}
    assert on_disk(small) == (set() if evict else names)
    fetched = [request.path for request in hub.requests if request.method == "GET" and "/storage/" in request.path]
    assert sorted(path.rpartition("/")[2] for path in fetched) == sorted(names)


@pytest.mark.parametrize(("room", "is_kept"), [(-1, False), (0, True)])
def test_what_the_disk_has_no_room_for_is_not_kept(
    room: int, is_kept: bool, hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    monkeypatch.setattr(hub_shards, "free_bytes", lambda place: n_bytes + hub_shards.LEFT_FREE_BYTES + room)
    with open_store(shards(hub, checkpoint, small, evict="auto")) as store:
        streamed_hidden(store)
    assert bool(on_disk(small)) is is_kept


def test_what_is_in_the_cache_needs_no_room(
    hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(shards(hub, checkpoint, small)) as store:
        streamed_hidden(store)
    kept = on_disk(small)
    monkeypatch.setattr(hub_shards, "free_bytes", lambda place: hub_shards.LEFT_FREE_BYTES)
    with open_store(shards(hub, checkpoint, small, evict="auto")) as store:
        streamed_hidden(store)
    assert on_disk(small) == kept


def test_a_single_file_streams_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    checkpoint = zoo.save_checkpoint("llama", tmp_path / "whole", max_shard_size="1GB")
    # Some repositories hold the same weights in shards as well, whose index is of no account.
    (checkpoint / INDEX).write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    with open_store(shards(hub, checkpoint, tmp_path / "small", evict=True)) as store:
        assert all_equal(streamed_hidden(store), resident_hidden(checkpoint))
    assert on_disk(tmp_path / "small") == set()


def test_no_more_than_three_layers_are_on_the_disk(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small, evict=True)
    with open_store(source) as store:
        needs = [set(store._shards(portion)) for portion in (REST, *range(store.n_layers))]
        seen: list[set[str]] = []
        for index, layer in enumerate(store.structure.layers):

            def look(module: object, args: object, index: int = index) -> None:
                here = on_disk(small)
                assert here <= needs[0].union(*needs[index + 1 : index + 4])
                seen.append(here)

            layer.register_forward_pre_hook(look)
        streamed_hidden(store)
        assert len(seen) == 3 * store.n_layers
        assert max(map(len, seen)) < len({path.name for path in checkpoint.glob("*.safetensors")})


def test_the_next_layer_is_downloaded_while_one_computes(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small, evict=True)
    with open_store(source) as store:
        computing = threading.Event()
        needed_next = set(store._shards(1)) - set(store._shards(0)) - set(store._shards(REST))
        waited: list[bool] = []
        plain = source._download

        def download(shard: str) -> Path:
            if shard in needed_next:
                waited.append(computing.wait(30))
            return plain(shard)

        source._download = download
        store.structure.layers[0].register_forward_pre_hook(lambda *_: computing.set())
        streamed_hidden(store)
        assert waited == [True] * len(needed_next)


def test_the_identity_is_the_commit(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small)
    assert source.identity == f"{REPO}@{read_origin(small).revision}"
    assert source.weight_map == LocalShards(checkpoint).weight_map
    source.close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_given_time(status: int, hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small)
    headers = {"Retry-After": "0"} if status == 429 else {}
    hub.fail("model-00003-of-00006.safetensors", status=status, times=2, headers=headers)
    with open_store(source) as store:
        assert all_equal(streamed_hidden(store), resident_hidden(checkpoint))


def test_a_download_that_is_cut_goes_on_where_it_was_cut(
    hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    source = shards(hub, checkpoint, small)
    hub.fail("model-00002-of-00006.safetensors", cut_after=1000)
    with open_store(source) as store:
        assert all_equal(streamed_hidden(store), resident_hidden(checkpoint))
    ranges = [request.byte_range for request in hub.requests if request.path.endswith("00002-of-00006.safetensors")]
    assert "bytes=1000-" in ranges


def test_a_hub_that_goes_on_failing_is_told(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small)
    hub.fail("model-00003-of-00006.safetensors", status=503, times=100)
    with pytest.raises(StudyError, match="fault of its own") as error, open_store(source) as store:
        streamed_hidden(store)
    assert "run again" in str(error.value.remedy)


def test_a_file_that_the_hub_lacks_is_told(hub: HubServer, checkpoint: Path, small: Path) -> None:
    (checkpoint / "model-00004-of-00006.safetensors").unlink()
    source = shards(hub, checkpoint, small)
    with pytest.raises(StudyError, match="lacks a file") as error, open_store(source) as store:
        streamed_hidden(store)
    assert error.value.key == "models.llama.source.repo"


def test_a_gated_model_without_a_token_is_told(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small, gated=True)
    with pytest.raises(StudyError, match="gated") as error, open_store(source) as store:
        streamed_hidden(store)
    assert "HF_TOKEN" in str(error.value.remedy)


def test_a_token_of_the_environment_is_used(
    hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shards(hub, checkpoint, small, gated=True, licensed=("secret",))
    monkeypatch.setenv("HF_TOKEN", "secret")
    with open_store(source) as store:
        streamed_hidden(store)
    storage = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert storage and all(request.token is None for request in storage)


def test_a_damaged_shard_is_told(hub: HubServer, checkpoint: Path, small: Path) -> None:
    shard = checkpoint / "model-00005-of-00006.safetensors"
    shard.write_bytes(shard.read_bytes()[:-50])
    source = shards(hub, checkpoint, small)
    with pytest.raises(StudyError, match="cut short") as error, open_store(source) as store:
        streamed_hidden(store)
    assert Path(str(error.value.file)).name == shard.name


def test_what_is_in_the_cache_is_not_downloaded_and_not_evicted(hub: HubServer, checkpoint: Path, small: Path) -> None:
    with open_store(shards(hub, checkpoint, small)) as store:
        streamed_hidden(store)
    before, cached = len(hub.requests), on_disk(small)
    with open_store(shards(hub, checkpoint, small, evict=True)) as store:
        assert all_equal(streamed_hidden(store), resident_hidden(checkpoint))
    assert (len(hub.requests), on_disk(small)) == (before, cached)


def test_what_a_killed_run_left_is_used_or_removed(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small, evict=True)
    with open_store(source) as store:
        first, last = store._shards(1)[0], store._shards(4)[-1]
        assert first not in store._shards(REST) + store._shards(2)
        for shard in (first, last):
            source.path(shard)
    before = len(hub.requests)
    half = small.with_name("shards") / ".cache" / "huggingface" / "download" / "x.1234.incomplete"
    half.write_bytes(b"half")
    with open_store(shards(hub, checkpoint, small, evict=True)) as store:
        with ready_lockstep(store, first_layer=2):
            assert first not in on_disk(small) and last in on_disk(small)
            store.source.path(last)
    fetched = {request.path.rpartition("/")[2] for request in hub.requests[before:] if "/storage/" in request.path}
    assert not {first, last} & fetched
    assert not half.exists()


@pytest.mark.parametrize("evict", [False, True])
def test_a_disk_that_is_too_small_is_told_before_anything_comes(
    evict: bool, hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with open_store(shards(hub, checkpoint, small, evict=evict)) as store:
        with pytest.raises(StudyError, match="no room") as told:
            store.plan()
        assert ("evict: auto" in str(told.value.remedy)) is not evict
        # The end of a run takes less.
        store.plan(first_layer=store.n_layers - 1)
        assert store.source.path(store._shards(store.n_layers - 1)[0]).exists()


def test_a_disk_that_fills_is_told(
    hub: HubServer, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*args: object, **options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_shards, "hf_hub_download", fill)
    with pytest.raises(StudyError, match="disk is full") as told, open_store(shards(hub, checkpoint, small)) as store:
        streamed_hidden(store)
    assert told.value.file == small.with_name("cache")
    assert re.search(r"\d GB are free", str(told.value.got))
    assert told.value.remedy


def test_an_interrupted_run_needs_only_what_is_left(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small, evict=True)
    with open_store(source) as store:
        gone = set(store._shards(0)) - set(store._shards(REST))
        needed = {shard for portion in (REST, *range(3, store.n_layers)) for shard in store._shards(portion)}
        with ready_lockstep(store, first_layer=3):
            pass
        for shard in needed:
            source.path(shard)
        assert on_disk(small) >= needed
        assert not gone & on_disk(small) or gone & needed


def test_an_error_does_not_wait_for_a_download(hub: HubServer, checkpoint: Path, small: Path) -> None:
    source = shards(hub, checkpoint, small)
    begun, let_go = threading.Event(), threading.Event()
    plain = source._download

    def stall(shard: str) -> Path:
        if shard == "model-00006-of-00006.safetensors":
            begun.set()
            let_go.wait(30)
        return plain(shard)

    source._download = stall

    def fail(*_: object) -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError), open_store(source) as store:
        if "model-00006-of-00006.safetensors" in store._shards(REST):
            let_go.set()
        store.structure.layers[0].register_forward_hook(fail)
        try:
            streamed_hidden(store)
        finally:
            assert begun.wait(30)
            let_go.set()
    assert torch.is_grad_enabled()
