"""A tiny sweep over the digits: its section of the study, and the images."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.scale_sweep.images import ImageOptions, prepare_images
from outlier_moe.scale_sweep.study import chosen_sweep
from outlier_moe.study.study import validated_study

ROOT = Path(__file__).parent.parent.parent.parent
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"


def study(**section: Any) -> dict[str, Any]:
    document = deepcopy(read_yaml(ROOT / "config/config.yaml"))
    document["scale_sweep_preset"] = "laptop"
    for path, value in section.items():
        *sections, key = path.split("__")
        place = document["scale_sweep"]
        for name in sections:
            place = place[name]
        place[key] = value
    return document


@pytest.fixture(scope="session")
def sweep() -> dict[str, Any]:
    tiny = {"d_model": 16, "n_layers": 2, "n_heads": 2}
    document = study(
        n_steps=6, multiples=[1.0, 30.0], n_checkpoints=2, n_evaluated=20, n_recorded=3, sizes__w16=tiny, scales=["w16"]
    )
    return chosen_sweep(validated_study(document, SCHEMA))


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "images"
    prepare_images(folder, ImageOptions())
    return folder
