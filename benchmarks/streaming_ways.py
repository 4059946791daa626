"""One run of a checkpoint, for benchmarks/streaming.py: resident, streamed, or with accelerate's disk offload.

It prints `ready` when everything is imported, waits for a line, works, and prints what came of it as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.models.llama.modeling_llama
import transformers.models.mixtral.modeling_mixtral  # noqa: F401
from random_checkpoints import VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM

from outlier_moe.architectures.moe_hooks import pin_experts
from outlier_moe.architectures.structure import find_structure
from outlier_moe.definitions.record_options import RecordOptions
from outlier_moe.recording.resident import load_resident, record_resident
from outlier_moe.recording.streamed import load_streamed, record_streamed
from outlier_moe.recording.writer import RecordingWriter
from outlier_moe.streaming.layer_store import REST, LayerStore
from outlier_moe.streaming.lockstep import Lockstep
from outlier_moe.streaming.prefetch import LayerReader

Interval = tuple[float, float]
CPU = torch.device("cpu")
WAYS = ("resident", "streamed", "offload")


def tokens_of(arguments: argparse.Namespace) -> np.ndarray:
    """Random tokens, the same for every way."""
    shape = (arguments.sequences, arguments.length)
    return np.random.default_rng(0).integers(0, VOCABULARY, shape).astype(np.uint32)


def chunks(arguments: argparse.Namespace) -> list[Tensor]:
    """The tokens of each chunk of sequences."""
    tokens = torch.from_numpy(tokens_of(arguments).astype(np.int64))
    return list(tokens.split(arguments.chunk))


def digest_of(hidden: list[Tensor]) -> str:
    """What differs if a bit of the hidden states does."""
    return hashlib.sha256(torch.cat(hidden).view(torch.int16).numpy().tobytes()).hexdigest()[:12]


@contextlib.contextmanager
def recording(arguments: argparse.Namespace, scratch: Path, n_layers: int) -> Iterator[tuple[Any, ...]]:
    """Tokens, options and writer of a recording that is thrown away."""
    tokens = tokens_of(arguments)
    options = RecordOptions(chunk=arguments.chunk)
    folder = scratch / "recording"
    with RecordingWriter(folder, tokens=tokens, n_peaks=8, n_layers=n_layers, ladder=options.ladder) as writer:
        yield tokens, options, writer
        writer.finish({}, lambda ids: "")


def run_whole(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All sequences through a model that brings its weights in by itself."""
    if arguments.way == "resident":
        model: Any = load_resident(arguments.checkpoint, dtype="checkpoint", device=CPU)
    else:
        n_layers = json.loads((arguments.checkpoint / "config.json").read_text())["num_hidden_layers"]
        places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        places |= {f"model.layers.{index}": "disk" for index in range(n_layers)}
        model = AutoModelForCausalLM.from_pretrained(
            arguments.checkpoint, dtype="auto", device_map=places, offload_folder=scratch
        ).eval()
    structure = find_structure(model)
    pin_experts(structure)
    if arguments.taps:
        with recording(arguments, scratch, len(structure.layers)) as (tokens, options, writer):
            record_resident(model, structure, tokens, options, writer, advance=lambda n: None)
        return {}
    hidden = []
    with torch.no_grad():
        for rows in chunks(arguments):
            if arguments.way == "offload" and arguments.cold:
                drop_from_cache(arguments.checkpoint)
            hidden.append(structure.backbone(input_ids=rows, use_cache=False).last_hidden_state)
    return {"digest": digest_of(hidden)}


def run_streamed(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All sequences through one layer after the other."""
    store = load_streamed(arguments.checkpoint, dtype="checkpoint", device=CPU)
    pin_experts(store.structure)
    reading, computing = watched(store)
    if arguments.taps:
        with recording(arguments, scratch, store.n_layers) as (tokens, options, writer):
            record_streamed(store, tokens, options, writer, advance=lambda n: None)
        digest = ""
    else:
        digest = digest_of(streamed_hidden(store, arguments))
    return {
        "digest": digest,
        "bytes_read": store.bytes_read,
        "reading_s": sum(stop - start for start, stop in reading),
        "overlapped_s": sum(
            max(0.0, min(stop, end) - max(start, begin)) for start, stop in reading for begin, end in computing
        ),
    }


def streamed_hidden(store: LayerStore, arguments: argparse.Namespace) -> list[Tensor]:
    """What the model gives for each chunk."""
    backbone = store.structure.backbone
    runs = [lambda rows=rows: backbone(input_ids=rows, use_cache=False).last_hidden_state for rows in chunks(arguments)]
    store.plan()
    with LayerReader(store, range(store.n_layers)) as reader:
        with Lockstep(store.structure, runs, awake=lambda number: contextlib.nullcontext()) as lockstep:
            reader.bring_in(REST, then=0)
            lockstep.start()
            for _ in lockstep.layers(reader.present):
                pass
            return lockstep.results


def watched(store: LayerStore) -> tuple[list[Interval], list[Interval]]:
    """Lists that fill with the times at which layers are read ahead and at which they compute."""
    reading: list[Interval] = []
    computing: list[Interval] = []
    read = store.read

    def timed_read(portion: int) -> Any:
        started = time.perf_counter()
        raw = read(portion)
        # The first layer has nothing to be read beside.
        if portion > 0 and threading.current_thread() is not threading.main_thread():
            reading.append((started, time.perf_counter()))
        return raw

    store.read = timed_read
    begun: list[float] = []
    for layer in store.structure.layers:
        layer.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
        layer.register_forward_hook(lambda *_: computing.append((begun.pop(), time.perf_counter())))
    return reading, computing


def drop_from_cache(directory: Path) -> None:
    """Have the system forget the pages of the files of a folder."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the benchmark and its runs both are told."""
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=1, help="sequences that go through the model together")
    parser.add_argument("--taps", action="store_true", help="record outliers, not only run the model")
    parser.add_argument("--cold", action="store_true", help="none of the checkpoint in the system's cache at first")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "outlier-moe-benchmark")


def main() -> None:
    """Run once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("checkpoint", type=Path)
    add_options(parser)
    arguments = parser.parse_args()
    print("ready", flush=True)
    sys.stdin.readline()
    wall, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        result = (run_streamed if arguments.way == "streamed" else run_whole)(arguments, Path(scratch))
        spent = {"wall_s": time.perf_counter() - wall, "processor_s": time.process_time() - processor}
    print(json.dumps({**spent, **result}), flush=True)


if __name__ == "__main__":
    main()
