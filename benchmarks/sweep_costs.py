"""What measuring costs beside training in a sweep that was run: `python benchmarks/sweep_costs.py results/scale_sweep`.

Seconds by the clock of each run, as its job noted them, and their share of its training: losses of the three parts of
the data; ranks, sparsity and recordings at all checkpoints; and what of a run's first recording is the loading of
compiled code, which does not go with its length: its time above the median of the later ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl


def costs(metrics: Path) -> dict[str, str | float]:
    """One run's seconds.

    Args:
        metrics: Its `metrics.parquet`, beside the folder of the run.
    """
    scale, optimizer, seed = metrics.parent.parts[-3:]
    table = pl.read_parquet(metrics).filter(metric="time_s")
    spent = dict(table.group_by("place").agg(pl.col("value").sum()).iter_rows())
    first, *later = table.filter(place="recording").sort("step")["value"].to_list() or [0.0]
    return {
        "run": f"{scale} {optimizer} {seed}",
        "training": pl.read_parquet(metrics.parent / "run/training_history.parquet")["time_s"].sum(),
        "losses": spent["evaluation"],
        "metrics": spent.get("recording", 0.0) + spent.get("measures", 0.0),
        "loading": max(0.0, first - float(pl.Series(later).median() or 0.0)) if later else 0.0,
    }


def main() -> None:
    """Print a line a run and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", type=Path, help="the folder of a sweep's results")
    arguments = parser.parse_args()
    found = sorted(arguments.sweep.glob("*/*/seed*/metrics.parquet"))
    if not found:
        parser.error(f"no run's metrics.parquet in {arguments.sweep}: run `snakemake scale_sweep` first")
    runs = pl.DataFrame([costs(path) for path in found])
    total = runs.select(pl.lit(f"all {len(runs)}").alias("run"), pl.exclude("run").sum())
    print(f"{'run':<24}{'training':>10}{'losses':>18}{'ranks, sparsity, recordings':>30}{'without loading':>18}")
    for row in pl.concat([runs, total]).iter_rows(named=True):
        training = row["training"]
        losses, metrics = f"{row['losses']:.2f} s", f"{row['metrics']:.2f} s"
        print(
            f"{row['run']:<24}{training:>8.1f} s{losses:>10} {row['losses'] / training:>6.1%}"
            f"{metrics:>22} {row['metrics'] / training:>6.1%}{(row['metrics'] - row['loading']) / training:>17.1%}"
        )


if __name__ == "__main__":
    main()
