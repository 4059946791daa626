"""The shipped profile and its prices, without a pod: what would run where, what it costs, and what stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cloud.stand_in.catalog import CARDS, write_catalog
from tests.workflow.study_folder import ROOT

pytest.importorskip("sky")


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    write_catalog(tmp_path / "home")
    return folder


def run(folder: Path, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD", "SKYPILOT"))}
    environment = kept | {"HOME": str(folder.parent / "home"), "HF_HUB_OFFLINE": "1"} | extra
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_dry_run_lists_every_model_with_its_tier(shipped: Path) -> None:
    done = run(shipped, "snakemake", "--profile", "profiles/runpod", "-n")
    assert done.returncode == 0, done.stdout
    registry = yaml.safe_load((shipped / "config/models.yaml").read_text())["models"]
    tiers = yaml.safe_load((shipped / "config/cluster.yaml").read_text())["tiers"]
    wanted = [model for model, entry in registry.items() if "full" in entry["sweeps"] and "unavailable" not in entry]
    assert len(wanted) > 20
    said = done.stdout + done.stderr
    lines = {line.strip().partition(":")[0]: line for line in said.splitlines() if " min" in line}
    for model in wanted:
        assert lines[model].partition(": ")[2].split()[0] in tiers, model


@pytest.mark.parametrize(
    ("arguments", "sweep"),
    [
        (["--config", "magnitude=5"], "full"),
        (["--config", "sweep=dense"], "dense"),
        (["--config", "models=[mixtral,qwen3-8b]"], {"mixtral", "qwen3-8b"}),
        (["results/olmoe-1b-7b/systematic.parquet"], {"olmoe-1b-7b"}),
        # A file of one's own takes the place of the profile's.
        (["--configfile", "config/config.yaml", "config/own.yaml"], "moe"),
    ],
)
def test_the_profiles_sweep_is_what_is_not_said_otherwise(
    shipped: Path, arguments: list[str], sweep: str | set[str]
) -> None:
    (shipped / "config/own.yaml").write_text("sweep: moe\n")
    done = run(shipped, "snakemake", "--profile", "profiles/runpod", "-n", *arguments)
    assert done.returncode == 0, done.stdout
    registry = yaml.safe_load((shipped / "config/models.yaml").read_text())["models"]
    there = {model for model, entry in registry.items() if "unavailable" not in entry}
    wanted = sweep if isinstance(sweep, set) else {model for model in there if sweep in registry[model]["sweeps"]}
    said = (done.stdout + done.stderr).splitlines()
    assert {line.strip().partition(":")[0] for line in said if line.endswith(" min")} == wanted
    assert f"record_outliers {len(wanted)}" in {" ".join(line.split()) for line in said}


def test_a_dry_run_on_this_machine_asks_for_no_node(shipped: Path) -> None:
    done = run(shipped, "snakemake", "-n", "results/mixtral/systematic.parquet")
    assert done.returncode == 0 and "Nodes to record on" not in done.stdout + done.stderr


def test_the_cost_is_the_catalogues(shipped: Path) -> None:
    done = run(shipped, "outlier_moe", "cost", "mixtral", "kimi-k2", "qwen3-0.6b", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["model"]: row for row in json.loads(done.stdout)}
    assert rows.keys() == {"mixtral", "kimi-k2", "qwen3-0.6b"}
    for row in rows.values():
        name, _, count = row["node"].partition(":")
        on_demand, spot = CARDS[name][:2]
        assert row["on_demand_per_hour"] == pytest.approx(on_demand * int(count))
        assert row["spot_per_hour"] == pytest.approx(spot * int(count))
        assert row["on_demand"] == pytest.approx(row["on_demand_per_hour"] * row["minutes"] / 60, rel=0.1)
        assert row["spot"] / row["on_demand"] == pytest.approx(spot / on_demand)
    assert rows["kimi-k2"]["on_demand"] > rows["mixtral"]["on_demand"] > rows["qwen3-0.6b"]["on_demand"]


@pytest.mark.parametrize("sweep", ["demo", "survey"])
def test_the_cost_is_what_a_run_reckons_with(shipped: Path, sweep: str) -> None:
    """Those of training experiments, too: they are most of the demo's."""
    told = run(shipped, "outlier_moe", "cost", "--sweep", sweep, "--no-hub", "--format", "json")
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)
    assert ("upcycle" in {row["model"] for row in rows}) == (sweep == "demo")
    arguments = ["--profile", "profiles/runpod", "--config", f"sweep={sweep}", "--skypilot-max-price-total", "0.01"]
    done = run(shipped, "snakemake", *arguments)
    reckoned = re.search(r"may not cost more than \$0\.01\.\n\s+key: .*\n\s+got: \$([\d.]+)", done.stdout + done.stderr)
    assert reckoned is not None, done.stdout + done.stderr
    assert float(reckoned[1]) == pytest.approx(sum(row["reserved"] for row in rows), abs=0.005)


def test_beyond_the_cap_nothing_starts(shipped: Path) -> None:
    arguments = ["--profile", "profiles/runpod", "--skypilot-max-price-total", "0.5"]
    done = run(shipped, "snakemake", *arguments)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "The run may not cost more than $0.5." in said and "Raise it to at least" in said
    assert not (shipped / "resources").exists(), "not even what runs here"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--profile", "profiles/runpod"], "The run may not cost more than $0.01."),
        (["--profile", "profiles/runpod", "--skypilot-max-price-total", "50"], "got: one of up to $50"),
        (["--executor", "skypilot", "--jobs", "2"], "got: one without a limit"),
    ],
)
def test_the_cap_is_that_of_the_tiers(shipped: Path, arguments: list[str], says: str) -> None:
    path = shipped / "config/cluster.yaml"
    path.write_text(path.read_text().replace("max_price_total: 100.0", "max_price_total: 0.01"))
    done = run(shipped, "snakemake", "results/qwen3-0.6b/systematic.parquet", *arguments)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and says in said, said
    assert not (shipped / "resources").exists()


def test_a_mistake_in_the_tiers_is_named_by_the_profile(shipped: Path) -> None:
    path = shipped / "config/cluster.yaml"
    path.write_text(path.read_text().replace("max_price_total", "max_price_totl"))
    done = run(shipped, "snakemake", "--profile", "profiles/runpod", "-n")
    assert done.returncode != 0
    assert "key: max_price_totl" in done.stderr and "Did you mean 'max_price_total'?" in done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"RUNPOD_API_KEY": ""}, ["There is no key for RunPod.", "RUNPOD_API_KEY", ".env"]),
        ({"SKYPILOT_SSH_KEY": "~/.ssh/absent", "RUNPOD_API_KEY": "made-up"}, ["An ssh key is missing.", "ssh-keygen"]),
    ],
)
def test_what_is_missing_is_said_before_anything_is_rented(
    shipped: Path, change: dict[str, str], says: list[str]
) -> None:
    done = run(shipped, "snakemake", "--profile", "profiles/runpod", "results/qwen3-0.6b/systematic.parquet", **change)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert all(part in said for part in says), said
    assert "Traceback" not in said
    assert not (shipped / "resources").exists()


def test_no_model_fits_on_a_tier_that_is_too_small(shipped: Path) -> None:
    path = shipped / "config/cluster.yaml"
    cluster = yaml.safe_load(path.read_text())
    cluster["tiers"] = {"small": cluster["tiers"]["small"] | {"host_memory_gib": 0.5}}
    path.write_text(yaml.safe_dump(cluster))
    done = run(shipped, "snakemake", "--profile", "profiles/runpod", "-n", "results/kimi-k2/systematic.parquet")
    assert done.returncode != 0
    assert "A model fits on no node." in done.stdout + done.stderr
