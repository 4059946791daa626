"""Presets and what takes their place; what cannot be run is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from snakemake.utils import update_config

from outlier_moe.config.yaml_files import read_yaml
from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep import study as sweeps
from outlier_moe.scale_sweep.scaling_rules import batch_size_for, learning_rate_for, measured_steps, n_steps_for
from outlier_moe.scale_sweep.study import IDX_FILES, chosen_sweep, in_parts, refuse_missing_images
from outlier_moe.study.study import FILE, validated_study
from tests.unit.scale_sweep.conftest import ROOT, SCHEMA, study


def chosen(**section: Any) -> dict[str, Any]:
    return chosen_sweep(validated_study(study(**section), SCHEMA))


def test_presets_are_those_of_the_issue_and_the_schema_has_them_too() -> None:
    document = read_yaml(ROOT / "config/config.yaml")
    full = validated_study(document, SCHEMA)
    assert (chosen_sweep(full)["n_epochs"], len(chosen_sweep(full)["scales"])) == (30, 5)
    quick = chosen_sweep(validated_study({**document, "scale_sweep_preset": "quick"}, SCHEMA))
    assert (quick["n_epochs"], quick["scales"]) == (15, ["tiny", "small", "medium"])
    bare = {key: document[key] for key in document if "scale_sweep" not in key}
    for key in ("scale_sweep", "lm_scale_sweep", "scale_sweep_preset"):
        assert validated_study(bare, SCHEMA)[key] == full[key]


def test_the_sweep_on_fashion_mnist_is_right() -> None:
    """Its file is put over the configuration as Snakemake does, key by key."""
    document = read_yaml(ROOT / "config/config.yaml")
    changed = read_yaml(ROOT / "config/fashion-mnist.yaml")
    update_config(document, changed)
    sweep = chosen_sweep(validated_study(document, SCHEMA))
    assert (sweep["image_size"], len(sweep["seeds"]), sweep["images"]["source"]) == (28, 6, "idx")
    assert sweep["scales"] == ["w32", "w64", "w96"] and sweep["images"]["validation_share"] == 0.1


def test_the_section_takes_the_place_of_the_preset() -> None:
    assert chosen(scales=["tiny"])["scales"] == ["tiny"]
    assert chosen(n_epochs=2)["n_steps"] is None
    assert chosen(n_steps=7)["n_steps"] == 7


@pytest.mark.parametrize(
    ("changes", "key", "got"),
    [
        ({"scales": ["w23"]}, "scales", "w23"),
        ({"optimizers": ["adam"]}, "optimizers.0", "the text 'adam'"),
        ({"images": {"source": "cifar"}}, "images.source", "the text 'cifar'"),
        ({"images": {"source": "idx"}}, "images.path", "nothing"),
        ({"multiples": []}, "multiples", "[]"),
        ({"training__n_accumulate": 65}, "training.n_accumulate", "65"),
        ({"sizes__w32": {"d_model": 32, "n_layers": 1, "n_heads": 3}}, "sizes.w32.d_model", "32"),
        ({"patch_size": 3}, "patch_size", "3"),
        ({"image_size": 4}, "image_size", "4"),
        ({"images__source": "cifar10"}, "image_size", "8"),
        ({"images__source": "cifar10", "image_size": 32}, "n_channels", "1"),
        ({"n_steps": None, "n_epochs": None}, "n_epochs", "{'n_epochs': None, 'n_steps': None}"),
        ({"n_steps": 3, "n_epochs": 3}, "n_epochs", "{'n_epochs': 3, 'n_steps': 3}"),
        ({"presets__laptop": {"scales": ["w32"]}}, "batch_size", "nothing"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], key: str, got: str) -> None:
    with pytest.raises(StudyError) as caught:
        chosen(**changes)
    assert (caught.value.key, str(caught.value.got)) == (f"scale_sweep.{key}", got)
    assert caught.value.file == FILE and caught.value.expected and caught.value.remedy


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        (
            {"sizes__w32": {"d_model": 32, "n_layers": 1, "n_heads": 3}},
            "a multiple of 3, or n_heads to a divisor of 32",
        ),
        ({"patch_size": 3}, "Set patch_size to 2, for one, or image_size to a multiple of 3."),
        ({"patch_size": 9}, "Set patch_size to 8, for one, or image_size to a multiple of 9."),
        ({"images": {"source": "idx"}}, "Set path to that folder"),
        ({"n_steps": None, "n_epochs": None}, "Set one of the two"),
        ({"n_steps": 3, "n_epochs": 3}, "leave the other out"),
        ({"presets__laptop": {"scales": ["w32"]}}, "Set batch_size in scale_sweep, or in the preset"),
        ({"multiples": []}, "List at least one item"),
    ],
)
def test_a_mistake_comes_with_its_remedy(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(StudyError, match=f"remedy: .*{remedy}"):
        chosen(**changes)


def test_an_empty_list_is_told_in_words() -> None:
    with pytest.raises(StudyError, match="a list of at least one item, without repetition"):
        chosen(multiples=[])


@pytest.mark.parametrize("changes", [{"scales": ["w23"]}, {"optimizers": ["soap"]}, {"patch_size": 3}])
def test_the_headline_is_right_for_every_mistake(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(StudyError) as caught:
        chosen(**changes)
    assert caught.value.problem == "A sweep cannot be run as the study says it."


def test_parts_of_a_batch_come_from_the_study() -> None:
    section = chosen(training__n_accumulate=4)
    of_rule = {**section, "training": {k: v for k, v in section["training"].items() if k != "n_accumulate"}}
    assert in_parts(of_rule, section) == section


def idx_sweep(folder: Path) -> dict[str, Any]:
    return chosen(images={"source": "idx", "path": str(folder)})


def test_a_folder_of_images_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="t10k-labels-idx1-ubyte, each plain or packed") as caught:
        refuse_missing_images(idx_sweep(tmp_path / "idx"), file=FILE)
    assert caught.value.got == f"{tmp_path / 'idx'}, which is no folder"
    assert (caught.value.file, caught.value.key) == (FILE, "scale_sweep.images.path")
    refuse_missing_images(chosen())


def test_a_folder_that_lacks_files_of_images_is_refused(tmp_path: Path) -> None:
    images, labels = IDX_FILES["train"]
    (tmp_path / images).touch()
    (tmp_path / f"{labels}.gz").touch()
    with pytest.raises(StudyError) as caught:
        refuse_missing_images(idx_sweep(tmp_path))
    assert caught.value.got == f"{tmp_path}, a folder without {', '.join(IDX_FILES['test'])}"
    for name in IDX_FILES["test"]:
        (tmp_path / f"{name}.gz").touch()
    refuse_missing_images(idx_sweep(tmp_path))


@pytest.mark.parametrize(
    ("section", "key", "place"),
    [
        ("scale_sweep", "seeds", "seeds.0"),
        ("scale_sweep", "tuning_seed", "tuning_seed"),
        ("lm_scale_sweep", "seeds", "seeds.0"),
        ("lm_scale_sweep", "tuning_seed", "tuning_seed"),
        ("upcycle", "seeds", "seeds.0"),
    ],
)
@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_that_no_generator_or_table_holds_is_refused(section: str, key: str, place: str, seed: int) -> None:
    document, largest = study(), 2**63 - 1
    document[section][key] = [largest] if key == "seeds" else largest
    validated_study(document, SCHEMA)
    document[section][key] = [seed] if key == "seeds" else seed
    with pytest.raises(StudyError) as caught:
        validated_study(document, SCHEMA)
    assert (caught.value.key, caught.value.got) == (f"{section}.{place}", str(seed))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("all", "sizes.all"),
        ("Images", "sizes.Images"),
        ("plots", "sizes.plots"),
        ("a/b", "sizes"),
        ("..", "sizes"),
        ("runs.parquet", "sizes"),
        ("", "sizes"),
        (32, "sizes"),
    ],
)
def test_a_scale_that_is_called_as_something_else_is_refused(name: str | int, key: str) -> None:
    document = study()
    document["scale_sweep"]["sizes"][name] = {"d_model": 16, "n_layers": 1, "n_heads": 2}
    with pytest.raises(StudyError) as caught:
        validated_study(document, SCHEMA)
    assert (caught.value.key, caught.value.got) == (f"scale_sweep.{key}", name)
    assert "name" in (caught.value.remedy or "")


def test_a_scale_whose_name_is_a_number_is_told_before_one_that_is_not_known() -> None:
    document = study(scales=["w23"])
    document["scale_sweep"]["sizes"][32] = {"d_model": 32, "n_layers": 1, "n_heads": 2}
    with pytest.raises(StudyError, match="a name that starts with a letter") as caught:
        validated_study(document, SCHEMA)
    assert (caught.value.key, caught.value.got) == ("scale_sweep.sizes", 32)


def test_a_misspelt_scale_or_preset_gets_the_nearest() -> None:
    with pytest.raises(StudyError, match="w32"):
        chosen(scales=["w23"])
    with pytest.raises(StudyError, match="did you mean 'quick'"):
        validated_study({**study(), "scale_sweep_preset": "quik"}, SCHEMA)


def test_heads_must_divide_the_widths_of_language_models_too() -> None:
    document = study()
    document["lm_scale_sweep"] |= {"d_models": [32], "d_head": 32}
    with pytest.raises(StudyError, match="Set d_models to multiples of 64, or d_head") as caught:
        validated_study(document, SCHEMA)
    assert (caught.value.key, caught.value.got) == ("lm_scale_sweep.d_models", 32)
    assert caught.value.expected == "a multiple of 64, twice d_head"


@pytest.mark.parametrize("section", ["scale_sweep", "lm_scale_sweep"])
def test_rates_are_tried_with_a_seed_of_their_own(section: str) -> None:
    document = study()
    document[section] |= {"seeds": [0, 7], "tuning_seed": 7, "multiples": [1.0]}
    # Of one rate there is nothing to choose.
    validated_study(document, SCHEMA)
    document[section]["multiples"] = [1.0, 3.0]
    with pytest.raises(StudyError, match="a seed of its own") as caught:
        validated_study(document, SCHEMA)
    assert (caught.value.key, caught.value.got) == (f"{section}.tuning_seed", 7)
    document[section]["tuning_seed"] = 8
    validated_study(document, SCHEMA)


def test_a_missing_package_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match="pip install 'pytorch-optimizer"):
        chosen(optimizers=["adamw", "soap"])
    assert chosen(optimizers=["adamw"])["optimizers"] == ["adamw"]


@pytest.mark.parametrize(
    ("n_parameters", "n_train", "wanted", "expected"),
    [
        (2_693_578, 45_000, "auto", 4096),
        (10_695_562, 45_000, "auto", 2048),
        (56_800_522, 45_000, "auto", 1024),
        (2_693_578, 1347, "auto", 168),
        (2_693_578, 1347, 64, 64),
        (2_693_578, 30, 64, 30),
    ],
)
def test_batches_by_size(n_parameters: int, n_train: int, wanted: int | str, expected: int) -> None:
    assert batch_size_for(n_parameters, n_train=n_train, wanted=wanted) == expected


def test_checkpoints_are_the_denser_the_earlier_and_end_with_the_run() -> None:
    assert measured_steps(100, 8) == (1, 2, 5, 12, 24, 42, 67, 100)
    assert measured_steps(150, 7) == (1, 3, 12, 28, 55, 94, 150)
    assert measured_steps(3, 8) == (1, 2, 3)
    assert measured_steps(1, 1) == (1,)
    for n_steps in range(1, 40):
        steps = measured_steps(n_steps, 15)
        assert steps[-1] == n_steps and len(set(steps)) == len(steps) == min(n_steps, 15)


def test_rates_are_linear_in_the_batch_and_steps_cover_the_epochs() -> None:
    assert learning_rate_for(0.1, 1024, reference=4096) == pytest.approx(0.025)
    assert n_steps_for(30, None, batch_size=4096, n_train=45_000) == 330
    assert n_steps_for(None, 100, batch_size=4096, n_train=45_000) == 100
