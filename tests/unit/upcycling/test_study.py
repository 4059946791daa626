"""What contradicts itself in the experiment's configuration is refused before anything runs."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from snakemake.utils import update_config
from transformers import AutoModelForCausalLM

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError
from outlier_moe.study.study import validated_study
from outlier_moe.upcycling.pairs import model_config
from outlier_moe.upcycling.settings import phase_options
from outlier_moe.upcycling.study import Pair, model_sizes

ROOT = Path(__file__).parent.parent.parent.parent
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def study(**changes: Any) -> dict[str, Any]:
    document = deepcopy(read_yaml(ROOT / "config/config.yaml"))
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = document["upcycle"]
        for name in sections:
            section = section[name]
        section[key] = value
    return document


@pytest.mark.parametrize(
    ("changes", "key", "got"),
    [
        ({"experts__top_k": 9}, "experts.top_k", 9),
        ({"experts__virtual_group": {"n_experts": 15, "granularity": 2}}, "experts.virtual_group.n_experts", 15),
        ({"experts__virtual_group": {"top_k": 3}}, "experts.virtual_group.top_k", 3),
        ({"model__d_ff": {"simple": 511}}, "model.d_ff.simple", 511),
        ({"model__n_heads": 3}, "model.d_model", 128),
        ({"training__n_accumulate": 9}, "training.n_accumulate", 9),
        ({"model__vocab_size": 100}, "model.vocab_size", 100),
        ({"arms": ["zero", "noise"]}, "arms.1", "the text 'noise'"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], key: str, got: object) -> None:
    with pytest.raises(StudyError) as caught:
        validated_study(study(**changes), SCHEMA)
    assert str(caught.value.key).replace("upcycle.", "") == key
    assert str(caught.value.got) == str(got)
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    "file", ["config.yaml", *sorted(path.name for path in (ROOT / "config").glob("upcycle-*.yaml"))]
)
def test_shipped_configurations_are_right_and_the_schemas_defaults_are_the_demos(file: str) -> None:
    document = read_yaml(ROOT / "config/config.yaml")
    chosen = validated_study(document, SCHEMA)["upcycle"]
    if file == "config.yaml":
        assert validated_study({**document, "upcycle": {}}, SCHEMA)["upcycle"] == chosen
    else:
        update_config(document, read_yaml(ROOT / "config" / file))
        validated_study(document, SCHEMA)


def test_the_published_run_is_the_reference() -> None:
    document = read_yaml(ROOT / "config/config.yaml")
    update_config(document, read_yaml(ROOT / "config/upcycle-reference.yaml"))
    options = [phase_options(document["upcycle"], phase=phase, arm="zero", seed=0) for phase in (1, 2)]
    assert [(of.training.n_steps, of.batch_size, of.lr) for of in options] == [(1000, 8, 3e-4), (1000, 8, 1e-4)]


@pytest.mark.parametrize(
    ("file", "n_parameters"),
    [
        ("upcycle-16m.yaml", {"simple": 16_025_344, "smollm": 16_030_208}),
        ("upcycle-reference.yaml", {"simple": 100_038_016, "smollm": 99_996_416}),
        ("upcycle-long.yaml", {"simple": 100_038_016, "smollm": 99_996_416}),
    ],
)
def test_shipped_sizes_are_the_published_ones(file: str, n_parameters: dict[Pair, int]) -> None:
    document = read_yaml(ROOT / "config/config.yaml")
    update_config(document, read_yaml(ROOT / "config" / file))
    for pair, n in n_parameters.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config(pair, model_sizes(document["upcycle"], pair)))
        assert model.num_parameters() == n


def test_an_arm_that_is_left_out_is_not_checked() -> None:
    chosen = validated_study(study(arms=["dense", "zero"], experts__virtual_group={"top_k": 3}), SCHEMA)["upcycle"]
    assert chosen["arms"] == ["dense", "zero"] and chosen["experts"]["virtual_group"]["top_k"] == 3
