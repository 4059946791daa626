"""The next layer is read while one computes, and never more than one ahead."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from outlier_moe.errors import StudyError
from outlier_moe.streaming.layer_store import REST, LayerStore, RawPortion
from outlier_moe.streaming.prefetch import LayerReader
from tests import zoo
from tests.streaming import all_equal, open_store, resident_hidden, streamed_hidden


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return open_store(zoo.save_checkpoint("llama", tmp_path))


def watch_reads(store: LayerStore) -> list[int]:
    reads: list[int] = []
    plain = store.read

    def read(portion: int) -> RawPortion:
        reads.append(portion)
        return plain(portion)

    store.read = read
    return reads


def test_layers_are_read_in_order_once_and_one_ahead(store: LayerStore) -> None:
    reads = watch_reads(store)
    ahead: list[int] = []
    for index, layer in enumerate(store.structure.layers):
        layer.register_forward_hook(lambda *_, index=index: ahead.append(reads[-1] - index))
    streamed_hidden(store)
    assert reads == [REST, *range(store.n_layers)]
    assert set(ahead) <= {0, 1}


def test_the_next_layer_is_read_while_one_computes(store: LayerStore) -> None:
    """Layer 1 is read to the end while layer 0 has not returned."""
    has_read = threading.Event()
    plain = store.read
    threads: set[str] = set()

    def read(portion: int) -> RawPortion:
        raw = plain(portion)
        threads.add(threading.current_thread().name)
        if portion == 1:
            has_read.set()
        return raw

    store.read = read
    waited: list[bool] = []
    store.structure.layers[0].register_forward_hook(lambda *_: waited.append(has_read.wait(30)))
    streamed_hidden(store)
    assert waited == [True] * 3
    assert all(name.startswith("layer-reader") for name in threads)


def test_an_error_of_the_reader_is_raised_where_the_layer_is_needed(store: LayerStore, tmp_path: Path) -> None:
    plain = store.read

    def read(portion: int) -> RawPortion:
        if portion == 2:
            raise StudyError("A shard is gone.")
        return plain(portion)

    store.read = read
    ran: list[int] = []
    for index, layer in enumerate(store.structure.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    with pytest.raises(StudyError, match="gone"):
        streamed_hidden(store)
    assert set(ran) == {0, 1}
    store.read = plain
    assert all_equal(streamed_hidden(store), resident_hidden(tmp_path))


def test_the_rest_is_read_once_for_several_runs(store: LayerStore) -> None:
    reads = watch_reads(store)
    assert all_equal(streamed_hidden(store), streamed_hidden(store))
    assert reads.count(REST) == 1
    assert reads.count(0) == 2


def test_layers_out_of_order_are_read_when_they_are_needed(store: LayerStore) -> None:
    reads = watch_reads(store)
    with LayerReader(store, range(store.n_layers)) as reader:
        with reader.present(3):
            assert not any(p.is_meta for p in store.structure.layers[3].parameters())
        with reader.present(1):
            assert not any(p.is_meta for p in store.structure.layers[1].parameters())
    assert reads[0] == 3 and 1 in reads
