"""Nanoseconds an element of sketching one site, by implementation: `python benchmarks/sketch.py`.

Before every measurement comes a product of matrices, as in a model's forward pass: it leaves the caches, and torch's
threads, in the state in which a hook finds them. The implementations take turns within a round, so that whatever else
the machine does befalls them all. `bincount` is what one writes first: torch.bincount of (step, feature) and the peaks,
and neither a median nor moments nor a union.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numba
import torch
from torch import Tensor

from outlier_moe.definitions.ladder import FLOAT32_SHIFT, N_EDGES, Ladder
from outlier_moe.recording import sketch_numba, sketch_torch

LADDER = Ladder()


def normal(shape: tuple[int, int, int]) -> Tensor:
    """As after a norm: hardly anything reaches the floor of 3."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def dense(shape: tuple[int, int, int]) -> Tensor:
    """As in a residual stream: most features of a size from 3 to 50, some values at 1e4."""
    generator = torch.Generator().manual_seed(0)
    size = torch.exp(torch.empty(shape[2]).uniform_(1.1, 3.9, generator=generator))
    x = torch.randn(shape, generator=generator) * size
    x[torch.rand(shape, generator=generator) < 1e-4] *= 1e3
    return x


def bincount(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, peaks and their positions of every feature, by plain torch operations."""
    n_sequences, _, n_features = x.shape
    magnitude = x.float().abs()
    step = ((magnitude.view(torch.int32) >> FLOAT32_SHIFT) - (LADDER.floor_rung - 1)).clamp(0, N_EDGES)
    lane = torch.arange(n_sequences * n_features).view(n_sequences, 1, n_features)
    counts = torch.bincount((lane * (N_EDGES + 1) + step).flatten(), minlength=lane.numel() * (N_EDGES + 1))
    peak, position = magnitude.max(dim=1)
    return counts, peak, position


def implementations(x: Tensor, n_threads: int) -> dict[str, Callable[[], object]]:
    """What is compared, by name."""
    union = torch.zeros(x.shape, dtype=torch.uint8)

    def on(threads: int, scale: sketch_numba.Scale) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(threads)
            return sketch_numba.sketch_site(x, ladder=LADDER, union=union, scale=scale)

        return run

    return {
        "compiled, 1 thread": on(1, "none"),
        f"compiled, {n_threads} threads": on(n_threads, "none"),
        f"token_rms, {n_threads} threads": on(n_threads, "token_rms"),
        "torch": lambda: sketch_torch.sketch_site(x, ladder=LADDER, union=union, scale="none"),
        "bincount": lambda: bincount(x),
    }


def nanoseconds(x: Tensor, *, n_rounds: int, n_threads: int) -> dict[str, list[float]]:
    """Nanoseconds an element of each implementation, a figure a round; a first round compiles and is left out."""
    weight = torch.randn(x.shape[2], 4 * x.shape[2])
    figures: dict[str, list[float]] = {name: [] for name in implementations(x, n_threads)}
    for _ in range(n_rounds + 1):
        for name, run in implementations(x, n_threads).items():
            torch.set_num_threads(n_threads)
            _ = x[0].float() @ weight
            started = time.perf_counter()
            run()
            figures[name].append((time.perf_counter() - started) / x.numel() * 1e9)
    torch.set_num_threads(n_threads)
    return {name: rounds[1:] for name, rounds in figures.items()}


def machine() -> str:
    """The processor, as far as the system tells, and the versions that matter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    processor = ", ".join(names) or platform.processor() or platform.machine()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}"
    return f"{processor}; {platform.system()}, {versions}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--d-model", type=int, default=576)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    n_threads = torch.get_num_threads()
    shape = (arguments.sequences, arguments.positions, arguments.d_model)
    print(f"{machine()}; {n_threads} threads")
    print(
        f"[sequence, position, feature] = {list(shape)}; median of {arguments.rounds} rounds (fastest), ns an element"
    )
    for make in (normal, dense):
        for dtype in (torch.float32, torch.bfloat16):
            figures = nanoseconds(make(shape).to(dtype), n_rounds=arguments.rounds, n_threads=n_threads)
            if make is normal and dtype is torch.float32:
                print("| data | dtype | " + " | ".join(figures) + " |")
                print("|---|---|" + "---|" * len(figures))
            cells = [f"{statistics.median(rounds):.2f} ({min(rounds):.2f})" for rounds in figures.values()]
            print(f"| {make.__name__} | {str(dtype).removeprefix('torch.')} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
