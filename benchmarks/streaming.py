"""Streaming beside the resident model and accelerate's disk offload: time, bytes read, memory.

Each run is a process of its own, begun with none of the checkpoint in the page cache; the three take turns. Memory is
what is no file's (RssAnon), sampled every few milliseconds, over that after all imports. Run:

    python benchmarks/streaming.py [--models llama mixtral] [--repeats 3] [--taps] [--directory FOLDER]
    python benchmarks/streaming.py --large      a checkpoint of 12 GB within 4 GB of memory
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WAYS = ("resident", "streamed", "offload")
LARGE_LIMIT = 4 * 2**30
SAMPLE_S = 0.004
CGROUPS = Path("/sys/fs/cgroup")


def config_fields(name: str) -> dict[str, Any]:
    """The shape of a benchmark model."""
    common = {"num_hidden_layers": 12, "vocab_size": 32000, "max_position_embeddings": 2048, "dtype": "bfloat16"}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16}
    if name == "llama":
        return {**common, **heads, "hidden_size": 2048, "intermediate_size": 8192}
    if name == "mixtral":
        return {**common, **heads, "hidden_size": 1024, "intermediate_size": 2304, "num_local_experts": 8}
    return {**common, **heads, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 22}


def build_checkpoint(name: str, directory: Path) -> None:
    """Write a random bfloat16 checkpoint in shards, a layer at a time in memory, with the hub's names."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, MixtralConfig

    fields = config_fields(name)
    config = (MixtralConfig if name == "mixtral" else LlamaConfig)(**fields)
    config.architectures = ["MixtralForCausalLM" if name == "mixtral" else "LlamaForCausalLM"]
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    portions = [layer_shapes(fields, index) for index in range(fields["num_hidden_layers"])]
    width, vocabulary = fields["hidden_size"], fields["vocab_size"]
    portions.insert(0, {"model.embed_tokens.weight": (vocabulary, width)})
    portions.append({"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)})
    for number, shapes in enumerate(portions):
        shard = f"model-{number + 1:05}-of-{len(portions):05}.safetensors"
        tensors = {}
        for key, shape in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.bfloat16)
            tensors[key] = values.exp_() if len(shape) == 1 else values.mul_(0.02)
        save_file(tensors, directory / shard)
        weight_map |= dict.fromkeys(tensors, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def layer_shapes(fields: dict[str, Any], index: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer as the hub has them."""
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    layer = f"model.layers.{index}"
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
    shapes |= {f"{layer}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    if "num_local_experts" in fields:
        experts = f"{layer}.block_sparse_moe"
        shapes[f"{experts}.gate.weight"] = (fields["num_local_experts"], width)
        for expert in range(fields["num_local_experts"]):
            for matrix, shape in {"w1": (inner, width), "w3": (inner, width), "w2": (width, inner)}.items():
                shapes[f"{experts}.experts.{expert}.{matrix}.weight"] = shape
    else:
        shapes |= {f"{layer}.mlp.{matrix}_proj.weight": (inner, width) for matrix in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    return shapes


def run_child(arguments: argparse.Namespace) -> None:
    """One run, in this process: says when all is imported, waits for a line, works, and says how it went."""
    import numpy as np
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401
    from transformers import AutoModelForCausalLM

    from outlier_moe.architectures.moe_hooks import pin_experts
    from outlier_moe.architectures.structure import find_structure
    from outlier_moe.recording.resident import load_resident
    from outlier_moe.recording.streamed import load_streamed

    shape = (arguments.sequences, arguments.length)
    tokens = np.random.default_rng(0).integers(0, 32000, shape).astype(np.uint32)
    device = torch.device("cpu")
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        if arguments.child == "streamed":
            store = load_streamed(arguments.checkpoint, dtype="checkpoint", device=device)
            pin_experts(store.structure)
            digest = run_streamed(store, tokens, arguments, Path(scratch))
        else:
            if arguments.child == "resident":
                model = load_resident(arguments.checkpoint, dtype="checkpoint", device=device)
            else:
                places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
                layers = {
                    f"model.layers.{i}": "disk" for i in range(config_fields(arguments.model)["num_hidden_layers"])
                }
                model = AutoModelForCausalLM.from_pretrained(
                    arguments.checkpoint, dtype="auto", device_map={**places, **layers}, offload_folder=scratch
                ).eval()
            structure = find_structure(model)
            pin_experts(structure)
            digest = run_model(model, structure, tokens, arguments, Path(scratch))
        seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "digest": digest}), flush=True)


def run_model(model: Any, structure: Any, tokens: Any, arguments: argparse.Namespace, scratch: Path) -> str:
    """All sequences through a model that answers for itself."""
    import numpy as np
    import torch

    from outlier_moe.recording.options import RecordOptions
    from outlier_moe.recording.resident import record_resident

    if arguments.taps:
        writer = recording_writer(scratch, tokens, len(structure.layers))
        with writer:
            options = RecordOptions(chunk=arguments.chunk)
            record_resident(model, structure, tokens, options, writer, advance=lambda n: None)
            writer.finish({}, lambda ids: "")
        return ""
    results = []
    with torch.no_grad():
        for first in range(0, len(tokens), arguments.chunk):
            if arguments.child == "offload":
                drop_from_cache(arguments.checkpoint)
            rows = torch.from_numpy(tokens[first : first + arguments.chunk].astype(np.int64))
            results.append(structure.backbone(input_ids=rows, use_cache=False).last_hidden_state)
    return digest_of(results)


def run_streamed(store: Any, tokens: Any, arguments: argparse.Namespace, scratch: Path) -> str:
    """All sequences through one layer after the other."""
    import numpy as np
    import torch

    from outlier_moe.recording.options import RecordOptions
    from outlier_moe.recording.streamed import record_streamed
    from outlier_moe.streaming.layer_store import REST
    from outlier_moe.streaming.lockstep import Lockstep
    from outlier_moe.streaming.prefetch import LayerReader

    if arguments.taps:
        writer = recording_writer(scratch, tokens, store.n_layers)
        with writer:
            options = RecordOptions(chunk=arguments.chunk)
            record_streamed(store, tokens, options, writer, advance=lambda n: None)
            writer.finish({}, lambda ids: "")
        return ""

    def forward(first: int) -> Any:
        rows = torch.from_numpy(tokens[first : first + arguments.chunk].astype(np.int64))
        return store.structure.backbone(input_ids=rows, use_cache=False).last_hidden_state

    runs = [lambda first=first: forward(first) for first in range(0, len(tokens), arguments.chunk)]
    store.plan()
    with LayerReader(store, range(store.n_layers)) as reader:
        with Lockstep(store.structure, runs, awake=lambda number: contextlib.nullcontext()) as lockstep:
            reader.bring_in(REST, then=0)
            lockstep.start()
            for _ in lockstep.layers(reader.present):
                pass
            return digest_of(lockstep.results)


def recording_writer(scratch: Path, tokens: Any, n_layers: int) -> Any:
    """Where a recording goes, to be thrown away."""
    from outlier_moe.recording.writer import RecordingWriter

    return RecordingWriter(scratch / "recording", tokens=tokens, n_peaks=8, n_layers=n_layers)


def digest_of(results: list[Any]) -> str:
    """What differs if a bit of the hidden states does."""
    import hashlib

    import torch

    return hashlib.sha256(torch.cat(results).view(torch.int16).numpy().tobytes()).hexdigest()[:12]


def drop_from_cache(directory: Path) -> None:
    """Have the system forget the pages of the files of a folder."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def counters(pid: int) -> dict[str, int]:
    """Anonymous memory, and bytes read so far, of a process."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    anonymous = next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {"anonymous": anonymous, "asked": int(fields["rchar"]), "from_disk": int(fields["read_bytes"])}


def measure(way: str, arguments: argparse.Namespace, checkpoint: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Run one way in a process of its own and watch it."""
    drop_from_cache(checkpoint)
    command = [sys.executable, __file__, "--child", way, "--checkpoint", str(checkpoint)]
    for name in ("model", "sequences", "length", "chunk", "directory"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--taps"] if arguments.taps else []
    with limited(limit) as prepare:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
            stderr=subprocess.PIPE,
        )
        assert child.stdin and child.stdout and child.stderr
        if child.stdout.readline().strip() != "ready":
            raise SystemExit(child.stderr.read())
        before = counters(child.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        peak, latest = before["anonymous"], before
        while child.poll() is None:
            with contextlib.suppress(OSError, StopIteration, ValueError):
                latest = counters(child.pid) if Path(f"/proc/{child.pid}/io").exists() else latest
                peak = max(peak, latest["anonymous"])
            time.sleep(SAMPLE_S)
        output = child.stdout.read().strip().splitlines()
        if child.returncode or not output:
            raise SystemExit(f"{way} ended with {child.returncode}\n{child.stderr.read()[-2000:]}")
    return {
        **json.loads(output[-1]),
        "peak_mb": (peak - before["anonymous"]) / 2**20,
        "asked": latest["asked"] - before["asked"],
        "from_disk": latest["from_disk"] - before["from_disk"],
    }


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[Any]:
    """What is to run in a child, before it becomes another program, so that its memory stays below a limit."""
    if limit is None:
        yield None
        return
    version_1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
    group = (CGROUPS / "memory" if version_1 else CGROUPS) / f"streaming-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
    except OSError:
        print("no control group can be made: RLIMIT_DATA limits the memory instead")
        yield lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        return
    print(f"memory and page cache of the process limited to {limit / 2**30:g} GB by a control group")
    try:
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()


def bound_mb(name: str, arguments: argparse.Namespace) -> float:
    """Two layers, the hidden states and 300 MB."""
    fields = config_fields(name)
    import math

    layer = 2 * sum(math.prod(shape) for shape in layer_shapes(fields, 0).values())
    hidden = 2 * arguments.sequences * arguments.length * fields["hidden_size"]
    return (2 * layer + hidden) / 2**20 + 300


def rest_mb(name: str) -> float:
    """What lies outside the layers: embedding, head and final norm."""
    fields = config_fields(name)
    return 2 * (2 * fields["vocab_size"] + 1) * fields["hidden_size"] / 2**20


def report(name: str, arguments: argparse.Namespace, checkpoint: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Print one model's table."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    print(f"\n{name}: {size / 1e9:.2f} GB, {arguments.sequences} x {arguments.length} tokens, chunk {arguments.chunk}")
    print(
        f"{'':10}{'wall s':>8}{'/ resident':>12}{'CPU s':>8}{'asked /':>10}{'disk /':>10}{'peak MB':>10}  hidden states"
    )
    print(f"{'':38}{'checkpoint':>10}{'checkpoint':>10}")
    wall = {way: [run["seconds"] for run in runs[way]] for way in runs}
    for way, measured in runs.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(wall[way], wall["resident"], strict=True))
        typical = {
            key: statistics.median(run[key] for run in measured) for key in ("cpu_seconds", "asked", "from_disk")
        }
        print(
            f"{way:10}{statistics.median(wall[way]):8.1f}{ratio:12.3f}{typical['cpu_seconds']:8.1f}"
            f"{typical['asked'] / size:10.3f}{typical['from_disk'] / size:10.3f}"
            f"{max(run['peak_mb'] for run in measured):10.0f}  {measured[0]['digest']}"
        )
    bound, rest = bound_mb(name, arguments), rest_mb(name)
    print(f"bound: 2 layers + hidden states + 300 MB = {bound:.0f} MB (what lies outside the layers: {rest:.0f} MB)")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama", "mixtral"], choices=["llama", "mixtral"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--taps", action="store_true", help="record outliers, not only run the model")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()) / "outlier-moe-benchmark")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_child(arguments)
    arguments.directory.mkdir(parents=True, exist_ok=True)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name in ["large"] if arguments.large else arguments.models:
        checkpoint = arguments.directory / name
        if not (checkpoint / "model.safetensors.index.json").exists():
            build_checkpoint(name, checkpoint)
        arguments.model = name
        if arguments.large:
            runs = {"resident": [measure("streamed", arguments, checkpoint, limit=LARGE_LIMIT)]}
            print("(the one row is the streamed run)")
        else:
            runs = {way: [] for way in arguments.ways}
            for _ in range(arguments.repeats):
                for way in arguments.ways:
                    runs[way].append(measure(way, arguments, checkpoint))
        report(name, arguments, checkpoint, runs)


if __name__ == "__main__":
    main()
