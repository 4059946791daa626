from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlier_moe.config.registry import (
    DirectorySource,
    FilesSource,
    GgufWheelSource,
    HubDatasetSource,
    HubSource,
    Registry,
    load_registry,
)
from outlier_moe.errors import StudyError

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "workflow/schemas/models.schema.yaml"
RULES = ROOT / "workflow/rules/common.smk"


@pytest.fixture(scope="module")
def shipped() -> Registry:
    return load_registry(ROOT / "config/models.yaml", SCHEMA)


def model(**keys: Any) -> dict[str, Any]:
    entry = {
        "source": {"kind": "hub", "repo": "owner/name"},
        "family": "llama",
        "kind": "dense",
        "total_params_b": 1.0,
        "active_params_b": 1.0,
        "corpus": "text",
        "sweeps": ["demo"],
    }
    return {key: value for key, value in {**entry, **keys}.items() if value is not ...}


def written(tmp_path: Path, models: dict[str, Any]) -> Path:
    corpora = {"text": {"source": {"kind": "files", "paths": ["a.txt"]}, "max_characters": 10}}
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models, "corpora": corpora}))
    return path


def test_the_demo_needs_no_hub(shipped: Registry) -> None:
    (demo,) = shipped.sweep("demo")
    assert demo.id == "smollm2" and isinstance(demo.source, GgufWheelSource)
    assert demo.source.sha256.startswith("b179c952")
    assert shipped.corpus(demo.corpus).source.kind == "pydoc_topics"


def test_the_study_has_its_models(shipped: Registry) -> None:
    assert [len(shipped.sweep(name)) for name in ("dense", "moe", "survey", "full")] == [10, 7, 4, 21]
    full = {entry.id for entry in shipped.sweep("full")}
    assert full == {entry.id for name in ("dense", "moe", "survey") for entry in shipped.sweep(name)}
    mixtral = shipped.model("mixtral")
    assert mixtral.source == HubSource("mistralai/Mixtral-8x7B-v0.1") and mixtral.gated
    assert (mixtral.n_experts, mixtral.top_k, mixtral.release_date) == (8, 2, date(2023, 12, 11))
    edu = shipped.corpus(mixtral.corpus).source
    assert edu == HubDatasetSource("HuggingFaceFW/fineweb-edu", name="sample-10BT")


def test_a_model_that_was_never_published_is_skipped_with_the_reason(shipped: Registry) -> None:
    (absent,) = shipped.unavailable("dense")
    assert absent.id == "gemma-3-7b" and absent.source is None and "never" in (absent.unavailable or "")
    assert absent not in shipped.sweep("dense") and absent in shipped.unavailable("full")


def test_no_entry_lets_foreign_code_run(shipped: Registry) -> None:
    assert not any(entry.trust_remote_code for entry in shipped.models.values())


@pytest.mark.parametrize(
    ("ask", "suggestion"),
    [
        (lambda registry: registry.model("qwen3-06b"), "Did you mean 'qwen3-0.6b'?"),
        (lambda registry: registry.corpus("fineweb"), "Did you mean 'fineweb-edu'?"),
        (lambda registry: registry.sweep("densee"), "Did you mean 'dense'?"),
        (lambda registry: registry.unavailable("demoo"), "Did you mean 'demo'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(shipped: Registry, ask: Any, suggestion: str) -> None:
    with pytest.raises(StudyError) as caught:
        ask(shipped)
    assert caught.value.remedy == suggestion and caught.value.file == ROOT / "config/models.yaml"


def test_sources_become_what_they_are(tmp_path: Path) -> None:
    models = {
        "a-0.5b": model(source={"kind": "hub", "repo": "o/n", "revision": "v1"}),
        "b": model(source={"kind": "directory", "path": "x/y"}),
        "c": model(source={"kind": "checkpoint", "path": "x/z"}),
    }
    registry = load_registry(written(tmp_path, models), SCHEMA)
    assert list(registry.models) == ["a-0.5b", "b", "c"]
    assert registry.model("a-0.5b").source == HubSource("o/n", "v1")
    assert registry.model("b").source == DirectorySource(Path("x/y"))
    assert getattr(registry.model("c").source, "kind", None) == "checkpoint"
    assert registry.corpus("text").source == FilesSource(("a.txt",))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"corpus": "txet"}, "models.m.corpus"),
        ({"source": ...}, "models.m.source"),
        ({"source": ..., "corpus": ...}, "models.m.source, models.m.corpus"),
        ({"unavailable": "gone"}, "models.m"),
        ({"active_params_b": 2.0}, "models.m.active_params_b"),
        ({"kind": "moe", "n_experts": 2, "top_k": 4}, "models.m"),
        ({"n_experts": 2, "top_k": 1}, "models.m"),
        ({"gatd": True}, "models.m.gatd"),
        ({"sweeps": ["nope"]}, "models.m.sweeps.0"),
        ({"release_date": "2025"}, "models.m.release_date"),
        ({"release_date": "2025-13-01"}, "models.m.release_date"),
        ({"source": {"kind": "hub", "repo": "no-owner"}}, "models.m.source.repo"),
        ({"source": {"kind": "hub", "path": "x"}}, "models.m.source.path"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, keys: dict[str, Any], key: str) -> None:
    path = written(tmp_path, {"m": model(**keys)})
    with pytest.raises(StudyError) as caught:
        load_registry(path, SCHEMA)
    assert caught.value.key == key and caught.value.file == path


def test_what_every_call_of_snakemake_imports_is_not_heavy() -> None:
    modules = set(re.findall(r"^from (outlier_moe[\w.]*) import", RULES.read_text(), re.MULTILINE))
    assert "outlier_moe.config.registry" in modules
    heavy = {"torch", "transformers", "numba", "datasets", "altair", "huggingface_hub", "polars", "pyarrow"}
    code = f"import sys, {', '.join(sorted(modules))}; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True)
