"""Reading the next layer while the current one computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType

from outlier_moe.streaming.layer_store import REST, LayerStore, RawPortion


class LayerReader:
    """Brings the layers of a store in, one after the other, and reads one ahead in a thread of its own.

    On the CPU the next layer is read only when the current one has been converted, so that never more than two layers
    are in memory. On an accelerator conversion empties the process's memory, and reading goes on meanwhile.

    Args:
        store: The layers.
        order: The layers that will be wanted, in order. Others can be had, but are not read ahead.
    """

    def __init__(self, store: LayerStore, order: Sequence[int]) -> None:
        self.store = store
        self._next = dict(zip(order, order[1:], strict=False))
        self._converts_elsewhere = store.skeleton.placement.device.type != "cpu"
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layer-reader")
        self._ahead: dict[int, Future[RawPortion]] = {}

    def __enter__(self) -> LayerReader:
        """Nothing is read yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Forget what was read ahead; after an error without waiting for it, as it may wait for a download itself."""
        self._reader.shutdown(wait=kind is None, cancel_futures=True)
        self._ahead.clear()

    def start(self, portion: int) -> None:
        """Begin to read a portion."""
        self._ahead[portion] = self._reader.submit(self.store.read, portion)

    @contextmanager
    def present(self, layer: int) -> Iterator[None]:
        """The context in which a layer has its weights."""
        self.bring_in(layer, then=self._next.get(layer))
        try:
            yield
        finally:
            self.store.free(layer)

    def bring_in(self, portion: int, *, then: int | None = None) -> None:
        """Give a portion its weights, and begin to read another."""
        if portion == REST and self.store.has_rest:
            if then is not None:
                self.start(then)
            return
        if portion not in self._ahead:
            self.start(portion)
        raw = self._ahead.pop(portion).result()
        if then is not None and self._converts_elsewhere:
            self.start(then)
        self.store.install(portion, raw)
        if then is not None and not self._converts_elsewhere:
            self.start(then)
