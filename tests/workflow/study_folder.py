"""A copy of the workflow with a study of tiny models, to run for real."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import warm
from tests.tiny_models import save_tiny_model

ROOT = Path(__file__).parent.parent.parent
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all. "


@dataclass(frozen=True)
class StudyFolder:
    """A folder to run snakemake in."""

    path: Path
    """The folder."""

    def copied(self, path: Path) -> StudyFolder:
        """A copy with all that was done, to break or change."""
        shutil.copytree(self.path, path, symlinks=True)
        return StudyFolder(path)

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run snakemake in the folder; its output is that of both streams."""
        done = warm.run("snakemake", "--cores", "2", *arguments, folder=self.path)
        if check and done.returncode != 0:
            raise AssertionError(f"snakemake failed:\n{done.stdout}")
        return done

    def planned(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule a dry run plans."""
        printed = self.snakemake("--dry-run", *arguments).stdout
        stats = re.search(r"^Job stats:\n.*?\n-.*?\n(.*?)^total", printed, re.MULTILINE | re.DOTALL)
        if stats is None:
            return {}
        jobs = dict(line.split() for line in stats[1].splitlines() if line.strip())
        return {rule: int(n) for rule, n in jobs.items()}


def make_study(path: Path, models: dict[str, str], /, **study: Any) -> StudyFolder:
    """A copy of the workflow whose registry has tiny models and a small text.

    Args:
        path: The folder to make.
        models: Builders of `tiny_models` by the id that the study gives the model.
        **study: Keys of config.yaml to set.
    """
    shutil.copytree(ROOT / "workflow", path / "workflow")
    shutil.copytree(ROOT / "profiles", path / "profiles")
    shutil.copy(ROOT / "Snakefile", path)
    (path / "config").mkdir()
    text = TEXT * 40
    (path / "text.txt").write_text(text)
    entries = {}
    for model, builder in models.items():
        save_tiny_model(builder, path / "checkpoints" / model, text)
        entries[model] = {
            "source": {"kind": "directory", "path": f"checkpoints/{model}"},
            "corpus": "small",
            "sweeps": ["demo"],
        }
    corpora = {"small": {"source": {"kind": "files", "paths": ["text.txt"]}, "max_characters": 100000}}
    (path / "config/models.yaml").write_text(yaml.safe_dump({"models": entries, "corpora": corpora}, sort_keys=False))
    shipped = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    shipped["tokenize_corpus"] = {"n_sequences": 3, "sequence_length": 32}
    shipped["record_outliers"] |= {"floor": 0.5, "chunk": 1}
    (path / "config/config.yaml").write_text(
        yaml.safe_dump(shipped | {"magnitude": 1.0, "experiments": []} | study, sort_keys=False)
    )
    return StudyFolder(path)
