"""The page that translates another tool's options names only options, keys and commands that there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import yaml

from outlier_moe.cli import _parser
from outlier_moe.terminal.arguments import options, subcommands
from snakemake_executor_plugin_skypilot import ExecutorSettings

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/from-other-tools.md").read_text()
OURS = "\n".join(line.split("|")[2] for line in PAGE.splitlines() if line.count("|") == 3)


def test_every_option_and_command_exists() -> None:
    parser = _parser()
    fields = {f"--skypilot-{field.name.replace('_', '-')}" for field in dataclasses.fields(ExecutorSettings)}
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", OURS)) - {"--config"}
    assert named and named <= {*options(parser), *fields}
    commands = set(re.findall(r"outlier-moe ([a-z-]+)", PAGE))
    assert commands and commands <= set(subcommands(parser))


def test_every_key_exists() -> None:
    cluster = yaml.safe_load((ROOT / "config/cluster.yaml").read_text())
    assert all({"count", "accelerators"} <= set(tier) for tier in cluster["tiers"].values())
    assert all("memory_gib" in card for card in cluster["accelerators"].values())
    study = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())["properties"]
    assert "n_sequences" in study["tokenize_corpus"]["properties"]
    shipped = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert "survey2025" in shipped["filter_systematic"]["presets"]
