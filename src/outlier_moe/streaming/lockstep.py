"""Several forwards of one model, layer by layer: each parks before a decoder layer until all have come that far.

Every forward is the model's own, so that nothing is assumed about what happens between its layers. Each runs in a
greenlet of the calling thread, which parks in a hook by handing the thread back. Threads would do as well, but each
would have its own heap, its own pool of workers for parallel operations, and on a GPU its own workspace of cuBLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.errors import StudyError

Result = TypeVar("Result")


class LayerCall(NamedTuple):
    """The arguments of a decoder layer's next call."""

    layer: int
    """Index of the layer."""
    args: tuple[Any, ...]
    """Its arguments by position."""
    kwargs: dict[str, Any]
    """Its arguments by name."""


class ParkedForward(Generic[Result]):
    """One forward of a model that stops before each decoder layer.

    Args:
        run: The forward, as a function without arguments.
    """

    def __init__(self, run: Callable[[], Result]) -> None:
        self.greenlet = greenlet(run)
        self.call: LayerCall | None = None
        self._result: Result | None = None

    @property
    def awaits(self) -> int | None:
        """The layer that it is parked before; None before it starts and when it is over."""
        return None if self.call is None else self.call.layer

    @property
    def result(self) -> Result:
        """The output of the forward."""
        assert self.greenlet.dead
        return cast(Result, self._result)

    def advance(self) -> None:
        """Run up to the next decoder layer, or to the end."""
        self.call = None
        before = _thread_settings()
        handed_over = self.greenlet.switch()
        if self.greenlet.dead:
            self._result = handed_over
            return
        self.call = cast(LayerCall, handed_over)
        if (now := _thread_settings()) != before:
            raise StudyError(
                "The model changes torch's settings for the thread across its layers, so that it cannot be streamed.",
                key=f"layer {self.awaits}",
                expected=before,
                got=now,
                remedy="Record this model with mode: resident.",
            )

    def abandon(self) -> None:
        """Unwind a forward that will not be finished."""
        self.call = None
        if self.greenlet and not self.greenlet.dead:
            self.greenlet.throw(GreenletExit)


class Lockstep(Generic[Result]):
    """Runs several forwards of one model, all of them through a decoder layer before any goes further.

    Args:
        structure: The model's decoder.
        runs: The forwards, as functions without arguments.
        awake: The context in which a forward, told by its number, runs from one layer to the next.
    """

    def __init__(
        self,
        structure: DecoderStructure,
        runs: Sequence[Callable[[], Result]],
        *,
        awake: Callable[[int], AbstractContextManager[None]],
    ) -> None:
        self.forwards = [ParkedForward(run) for run in runs]
        self._structure = structure
        self._awake = awake
        self._contexts = ExitStack()

    def __enter__(self) -> Lockstep[Result]:
        """Put the hooks in place."""
        self._contexts.enter_context(torch.no_grad())
        greenlets = {forward.greenlet for forward in self.forwards}
        for index, layer in enumerate(self._structure.layers):
            gate = _gate(index, greenlets)
            # Before all other hooks, which are to see a layer only when it runs.
            self._contexts.enter_context(layer.register_forward_pre_hook(gate, with_kwargs=True, prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unwind what is still parked, and remove the hooks."""
        with self._contexts:
            for forward in self.forwards:
                forward.abandon()

    @property
    def results(self) -> list[Result]:
        """The outputs of the forwards."""
        return [forward.result for forward in self.forwards]

    def start(self) -> None:
        """Run every forward up to its first layer."""
        for number in range(len(self.forwards)):
            self._advance(number)

    def layers(self, present: Callable[[int], AbstractContextManager[None]]) -> Iterator[int]:
        """Run all forwards to their ends; yields each layer when they have come through it.

        Args:
            present: The context in which a layer has its weights.
        """
        while waiting := [forward.awaits for forward in self.forwards if forward.awaits is not None]:
            layer = min(waiting)
            with present(layer):
                for number, forward in enumerate(self.forwards):
                    if forward.awaits == layer:
                        self._advance(number)
            yield layer

    def _advance(self, number: int) -> None:
        with self._awake(number):
            self.forwards[number].advance()


def _gate(index: int, greenlets: set[greenlet]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def gate(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = getcurrent()
        if current in greenlets:
            cast(greenlet, current.parent).switch(LayerCall(index, args, kwargs))

    return gate


def _thread_settings() -> Mapping[str, bool]:
    """Settings of torch that hold for a thread, and so for all forwards in it."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
    }
