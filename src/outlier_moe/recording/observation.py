"""All hooks of a recording, reporting to the observer of the chunk of sequences that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from outlier_moe.architectures.moe_hooks import moe_hooks
from outlier_moe.architectures.moe_parts import find_experts
from outlier_moe.architectures.structure import DecoderStructure
from outlier_moe.architectures.tap_hooks import tap_hooks
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.recording.observer import ChunkObserver


@contextmanager
def observation(
    structure: DecoderStructure, options: RecordOptions, current: Callable[[], ChunkObserver]
) -> Iterator[None]:
    """Have the hooks at taps, routers and experts report to the observer of the chunk that runs.

    Args:
        structure: The model's parts.
        options: What to record.
        current: Gives the observer of the chunk whose forward is running.
    """
    taps = set(options.taps)
    with ExitStack() as hooks:
        if find_experts(structure):
            # Whether a token carries an outlier is seen there, recorded or not.
            taps.add("mlp_in")
            hooks.enter_context(moe_hooks(structure, lambda outputs: current().observe_experts(outputs)))
        hooks.enter_context(tap_hooks(structure, taps, lambda tap, layer, x: current().observe(tap, layer, x)))
        yield
