"""How long a changed threshold takes, from `snakemake` to the new report: `python benchmarks/rerun.py`.

A copy of the workflow gets made-up recordings, each as large as that of Qwen3-1.7B (28 layers, d_model 2048, 16
sequences, dense outliers), under the names of the registry's models. All stages run once; then a threshold changes, and
what follows is timed, in all and by stage: first the report alone, then plain `snakemake`, which filters each model's
features into a table of its own as well. With --folder the tables are kept and used again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import polars as pl
import yaml
from made_up_tables import MadeUpModel, write_made_up

ROOT = Path(__file__).resolve().parent.parent
REPORT = "results/report/index.html"
_LONG_AGO = 1.6e9


def make_study(folder: Path, n_models: int, *, n_layers: int, d_model: int) -> None:
    """A copy of the workflow whose models look recorded."""
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "Snakefile", folder)
    known = yaml.safe_load((ROOT / "config/models.yaml").read_text())["models"]
    chosen = [(name, entry) for name, entry in known.items() if "unavailable" not in entry and name != "smollm2"]
    entries = {}
    for seed, (name, entry) in enumerate(chosen[:n_models]):
        source = {"kind": "directory", "path": f"checkpoints/{name}"}
        entries[name] = {**entry, "source": source, "corpus": "small", "sweeps": ["demo"]}
        spread = 0.5 + 0.05 * (seed % 8) + (0.0 if entry["kind"] == "moe" else 0.15)
        outliers = folder / "results" / name / "outliers"
        if not (outliers / "run.json").exists():
            made_up = MadeUpModel(name, seed, n_layers, d_model, spread=spread, loss_nats=2.0 + 0.05 * (seed % 9))
            model = replace(made_up, n_parameters=round(1e9 * entry["total_params_b"]))
            write_made_up(outliers, model)
        _look_done(folder, name)
    corpora = {"small": {"source": {"kind": "files", "paths": ["text.txt"]}, "max_characters": 1000}}
    study = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    # The demo's training experiments are no part of what is timed.
    (folder / "config/config.yaml").write_text(yaml.safe_dump({**study, "experiments": []}, sort_keys=False))
    (folder / "config/models.yaml").write_text(yaml.safe_dump({"models": entries, "corpora": corpora}, sort_keys=False))


def _look_done(folder: Path, model: str) -> None:
    """Leave what comes before a model's counts: of it the outputs only have to be there, each older than the next."""
    earlier = ["resources/corpora/small.parquet", f"results/{model}/tokens.arrow"]
    for name in earlier:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "resources/models" / model).mkdir(parents=True, exist_ok=True)
    for age, name in enumerate([f"results/{model}/outliers", *reversed(earlier), f"resources/models/{model}"], 1):
        os.utime(folder / name, (_LONG_AGO - age, _LONG_AGO - age))


class Took(NamedTuple):
    """What a run took."""

    wall_s: float
    processor_s: float
    """Of all its processes."""

    def __str__(self) -> str:
        return f"{self.wall_s:.1f} s, of processor time {self.processor_s:.1f} s"


def snakemake(folder: Path, *arguments: str, cores: int) -> Took:
    """Run it, and say what it took."""
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit(done.stdout)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def stages(folder: Path, since: float) -> list[dict[str, object]]:
    """What each stage that ran took, by Snakemake's own benchmarks."""
    rows = []
    for path in sorted((folder / "logs/benchmarks").rglob("*.tsv")):
        if path.stat().st_mtime >= since:
            row = pl.read_csv(path, separator="\t", null_values=["NA", "-"]).row(0, named=True)
            name = str(path.relative_to(folder / "logs/benchmarks").with_suffix(""))
            rows.append({"stage": name, "time_s": row["s"], "cpu_time_s": row["cpu_time"], "mib": row["max_rss"]})
    return rows


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=23)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        make_study(folder, arguments.models, n_layers=arguments.layers, d_model=arguments.d_model)
        print(f"all stages after the recording, once: {snakemake(folder, cores=arguments.cores)}", flush=True)
        # None of them is the setting before, whose results are kept.
        for targets, magnitude in (([REPORT], "5.0"), ([REPORT], "5.5"), ([], "5.0"), ([], "5.5")):
            started = time.time()
            took = snakemake(folder, *targets, "--config", f"magnitude={magnitude}", cores=arguments.cores)
            report_s = (folder / REPORT).stat().st_mtime - started
            told = f"{took}; the report after {report_s:.1f} s"
            print(f"magnitude {magnitude}, snakemake {' '.join(targets)}: {told}", flush=True)
            for row in stages(folder, started):
                print("  " + json.dumps(row))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"the largest process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
