"""Streaming beside the resident model and accelerate's disk offload: time, bytes read, memory.

Each run is a process of its own; the ways take turns. Memory is what is no file's (RssAnon), sampled every few
milliseconds, over that after all imports. `disk` is what the process had the disk read, read-ahead included. Run:

    python benchmarks/streaming.py [--models llama mixtral] [--repeats 3] [--cold] [--taps] [--threads 1]
    python benchmarks/streaming.py --large      a checkpoint of 12 GB within 4 GB of memory
    python benchmarks/streaming.py --growth     with more sequences, and with more layers

With --cold none of the checkpoint is in the system's cache at first, and before each chunk of the disk offload. On a
busy machine take --threads 1 and look at the processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from random_checkpoints import SHAPES, build_checkpoint, layer_shapes, n_bytes, rest_shapes
from streaming_ways import WAYS, add_options, drop_from_cache

LARGE_LIMIT = 4 * 2**30
SAMPLE_S = 0.004
CGROUPS = Path("/sys/fs/cgroup")
CHILD = Path(__file__).with_name("streaming_ways.py")
COLUMNS = ("", "wall s", "ratio", "CPU s", "ratio", "tensors", "disk", "peak MB", "overlap", "states")

Run = Mapping[str, Any]


def counters(pid: int) -> dict[str, int]:
    """Anonymous memory of a process, and the bytes that it has had the disk read."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    anonymous = next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {"anonymous": anonymous, "disk": int(fields["read_bytes"])}


def measure(way: str, arguments: argparse.Namespace, checkpoint: Path, *, limit: int | None = None) -> Run:
    """Run one way in a process of its own and watch it."""
    if arguments.cold or limit is not None:
        drop_from_cache(checkpoint)
    command = [sys.executable, str(CHILD), way, str(checkpoint), "--directory", str(arguments.directory)]
    for name in ("sequences", "length", "chunk"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += [f"--{name}" for name in ("taps", "cold") if getattr(arguments, name)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)} if arguments.threads else None
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with limited(limit) as prepare, subprocess.Popen(command, text=True, env=environment, **pipes) as child:
        assert child.stdin and child.stdout
        if child.stdout.readline().strip() != "ready":
            raise SystemExit(f"{way} cannot be run: {' '.join(command)}")
        prepare(child.pid)
        before = latest = counters(child.pid)
        peak = before["anonymous"]
        child.stdin.write("go\n")
        child.stdin.flush()
        while child.poll() is None:
            with contextlib.suppress(OSError, StopIteration, KeyError):
                latest = counters(child.pid)
                peak = max(peak, latest["anonymous"])
            time.sleep(SAMPLE_S)
        output = child.stdout.read().strip().splitlines()
    if child.returncode or not output:
        raise SystemExit(f"{way} ended with {child.returncode}: {' '.join(command)}")
    used = {"peak_bytes": peak - before["anonymous"], "disk_bytes": latest["disk"] - before["disk"]}
    return {**json.loads(output[-1]), **used}


@contextlib.contextmanager
def limited(limit: int | None) -> Iterator[Any]:
    """What keeps the memory of a process, told by its number, below a limit."""
    if limit is None:
        yield lambda pid: None
        return
    version_1 = (CGROUPS / "memory" / "memory.limit_in_bytes").exists()
    group = (CGROUPS / "memory" if version_1 else CGROUPS) / f"streaming-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1 else "memory.max")).write_text(str(limit))
    except OSError:
        print(f"no control group can be made: RLIMIT_DATA of {limit / 2**30:g} GB limits the memory instead")
        yield lambda pid: resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
        return
    print(f"a control group limits memory and page cache of the process to {limit / 2**30:g} GB")
    try:
        yield lambda pid: (group / "cgroup.procs").write_text(str(pid))
    finally:
        group.rmdir()


def bound_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Two layers, the hidden states and 300 MB."""
    hidden = 2 * arguments.sequences * arguments.length * SHAPES[name]["hidden_size"]
    return 2 * n_bytes(layer_shapes(name, 0)) + hidden + 300 * 2**20


def table_row(way: str, measured: Sequence[Run], resident: Sequence[Run], size: int) -> list[str]:
    """One way's figures: medians, ratios to the resident run of the same turn, the largest peak."""
    row = [way]
    for clock in ("wall_s", "processor_s"):
        ratios = [ours[clock] / theirs[clock] for ours, theirs in zip(measured, resident, strict=True)]
        row += [f"{statistics.median(run[clock] for run in measured):.1f}", f"{statistics.median(ratios):.3f}"]
    last = measured[-1]
    return [
        *row,
        f"{last['bytes_read'] / size:.3f}" if "bytes_read" in last else "",
        f"{statistics.median(run['disk_bytes'] for run in measured) / size:.2f}",
        f"{max(run['peak_bytes'] for run in measured) / 2**20:.0f}",
        f"{last['overlapped_s'] / last['reading_s']:.0%}" if "reading_s" in last else "",
        last.get("digest", ""),
    ]


def report(name: str, arguments: argparse.Namespace, checkpoint: Path, runs: Mapping[str, Sequence[Run]]) -> None:
    """Print one model's table."""
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    cache = "nothing cached" if arguments.cold or arguments.large else "cached"
    print(f"\n{name}: {size / 1e9:.2f} GB, {arguments.sequences} x {arguments.length} tokens, {cache}")
    resident = runs.get("resident", next(iter(runs.values())))
    rows = [list(COLUMNS), *(table_row(way, measured, resident, size) for way, measured in runs.items())]
    for row in rows:
        print(f"{row[0]:9}" + "".join(f"{cell:>9}" for cell in row[1:-1]) + f"  {row[-1]}")
    rest = sum(map(n_bytes, rest_shapes(name)))
    print(
        f"2 layers + hidden states + 300 MB = {bound_bytes(name, arguments) / 2**20:.0f} MB;"
        f" outside the layers lie {rest / 2**20:.0f} MB",
        flush=True,
    )


def print_growth(arguments: argparse.Namespace) -> None:
    """Print what streaming takes with twice and four times the sequences, and with twice and four times the layers."""
    print(f"{'layers':>6}{'sequences':>10}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}{'states MB':>10}{'disk':>7}")
    for name, n_sequences in [("llama", 4), ("llama", 8), ("llama", 16), ("llama-6", 8), ("llama-24", 8)]:
        checkpoint = built_checkpoint(name, arguments.directory)
        run = measure("streamed", argparse.Namespace(**{**vars(arguments), "sequences": n_sequences}), checkpoint)
        layers, width = SHAPES[name]["num_hidden_layers"], SHAPES[name]["hidden_size"]
        states = 2 * n_sequences * arguments.length * width / 2**20
        size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        print(
            f"{layers:6}{n_sequences:10}{run['wall_s']:9.1f}{run['processor_s']:9.1f}"
            f"{run['peak_bytes'] / 2**20:9.0f}{states:10.0f}{run['disk_bytes'] / size:7.2f}",
            flush=True,
        )


def built_checkpoint(name: str, directory: Path) -> Path:
    """The folder of a random checkpoint, written if it is not there yet."""
    checkpoint = directory / name
    if not (checkpoint / "model.safetensors.index.json").exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        build_checkpoint(name, checkpoint)
    return checkpoint


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--models", nargs="+", default=["llama", "mixtral"], choices=["llama", "mixtral"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the runs")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.threads or 'all'} threads")
    if arguments.growth:
        print_growth(arguments)
        return
    for name in ["large"] if arguments.large else arguments.models:
        checkpoint = built_checkpoint(name, arguments.directory)
        runs: dict[str, list[Run]] = {way: [] for way in (["streamed"] if arguments.large else arguments.ways)}
        for _ in range(1 if arguments.large else arguments.repeats):
            for way, measured in runs.items():
                measured.append(measure(way, arguments, checkpoint, limit=LARGE_LIMIT if arguments.large else None))
        report(name, arguments, checkpoint, runs)


if __name__ == "__main__":
    main()
