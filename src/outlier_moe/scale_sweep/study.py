"""The configuration of the sweeps, and checks that a schema cannot make. The workflow imports this module: no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from outlier_moe.errors import StudyError, nearest
from outlier_moe.training.options import OptimizerName

OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
LIBRARY = "pytorch_optimizer"
OF_LIBRARY: tuple[OptimizerName, ...] = ("shampoo", "soap", "ademamix")
"""Those that torch lacks; the package of that name has them."""
ALL_SCALES = "all"
"""Stands in tables for the pairs of all scales together."""
SCALE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a scale may be called: the folder of its runs is called so."""
TAKEN_NAMES = (ALL_SCALES, "images", "plots")
"""What else stands where the names of scales do, in tables and in the folder of the results."""
INSTALL = "pip install 'pytorch-optimizer>=4.1,<5'"

PresetChoices = (
    "scales",
    "n_epochs",
    "n_steps",
    "batch_size",
    "image_size",
    "n_channels",
    "patch_size",
    "multiples",
    "tuning_share",
    "n_checkpoints",
    "n_evaluated",
    "n_recorded",
)
"""The keys that a preset gives, each of which the section itself may set in its place."""

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
"""Colours, rows and columns of the images of a source; those of `idx` are known when its files are read."""

IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
"""Images and labels of the parts of MNIST and its kin, each file plain or packed by gzip."""


@dataclass(frozen=True)
class Scale:
    """The sizes of a classifier."""

    d_model: int
    """Features of the residual stream."""
    n_layers: int
    """Layers."""
    n_heads: int
    """Attention heads."""


@dataclass(frozen=True)
class Geometry:
    """The form in which a classifier sees an image, whatever its source."""

    image_size: int
    """Pixels of a side."""
    n_channels: int
    """Colours."""
    patch_size: int
    """Pixels of a patch's side."""

    @property
    def patches_per_side(self) -> int:
        """Patches of a row."""
        return self.image_size // self.patch_size


def rates_of(optimizer: OptimizerName) -> tuple[OptimizerName, OptimizerName]:
    """The optimisers whose learning rates decide a run: its own, and the one for the remaining parameters."""
    return optimizer, "adamw" if optimizer == "muon" else optimizer


def chosen_sweep(study: Mapping[str, Any]) -> dict[str, Any]:
    """The section `scale_sweep` with what its preset gives filled in, and without the presets."""
    section = dict(study["scale_sweep"])
    preset = dict(section.pop("presets")[study["scale_sweep_preset"]])
    if {"n_epochs", "n_steps"} & set(section):
        # Whichever of the two the section sets, the preset's other one is not meant.
        preset |= {"n_epochs": None, "n_steps": None}
    return {**preset, **section}


def in_parts(sweep: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a run, with the number of parts of a batch.

    Rules have it without them: the same model comes of any number of parts, but for its last digits.

    Args:
        sweep: The section as the rule of the run has it.
        configured: The section as the study has it.
    """
    return {**sweep, "training": {**sweep["training"], "n_accumulate": configured["training"]["n_accumulate"]}}


def scale_of(sweep: Mapping[str, Any], scale: str) -> Scale:
    """The sizes behind the name of a scale."""
    return Scale(**sweep["sizes"][scale])


def geometry_of(sweep: Mapping[str, Any]) -> Geometry:
    """The form in which the classifiers of a sweep see an image."""
    return Geometry(sweep["image_size"], sweep["n_channels"], sweep["patch_size"])


def check_sweeps(study: Mapping[str, Any], *, file: str) -> None:
    """Refuse sweeps that cannot run.

    Raises:
        StudyError: Names the key, what was expected and what came.
    """
    presets, chosen = study["scale_sweep"]["presets"], study["scale_sweep_preset"]
    if chosen not in presets:
        raise StudyError(
            "A preset of the scale sweep is not known.",
            file=file,
            key="scale_sweep_preset",
            expected="one of " + ", ".join(presets),
            got=chosen,
            remedy=nearest(chosen, presets),
        )
    sweep = chosen_sweep(study)
    # The first is told before later ones are looked for, which take names to be text.
    for key, expected, got, remedy in chain(_mistakes(sweep), _lm_mistakes(study["lm_scale_sweep"])):
        raise StudyError(
            "A sweep cannot be run as the study says it.",
            file=file,
            key=key,
            expected=expected,
            got=got,
            remedy=remedy,
        )


def idx_path(folder: Path, name: str) -> Path:
    """The file of a name of `IDX_FILES`: the packed one where there is no plain one."""
    plain = folder / name
    return plain if plain.exists() else folder / f"{name}.gz"


def refuse_missing_images(sweep: Mapping[str, Any], *, file: str | None = None) -> None:
    """Refuse a folder of images that is not there or lacks a file, on the machine that they are read on.

    Args:
        sweep: The section, with what its preset gives filled in.
        file: Where it came from, for the message.

    Raises:
        StudyError: Names the files that the folder lacks.
    """
    if sweep["images"]["source"] != "idx":
        return
    folder = Path(sweep["images"]["path"])
    names = [name for names in IDX_FILES.values() for name in names]
    missing = [name for name in names if not idx_path(folder, name).is_file()]
    if missing:
        lacking = f", a folder without {', '.join(missing)}" if folder.is_dir() else ", which is no folder"
        raise StudyError(
            "The images of the scale sweep are not there.",
            file=file,
            key="scale_sweep.images.path",
            expected=f"a folder with {', '.join(names)}, each plain or packed (.gz)",
            got=f"{folder}{lacking}",
            remedy="Point it to one, or take the source digits, which comes with scikit-learn.",
        )


Mistake = tuple[str, object, object, str | None]
"""A key, what was expected, what came, and the remedy."""


def misfits(shape: Sequence[int], geometry: Geometry) -> Iterator[Mistake]:
    """Why images of some colours, rows and columns cannot be shown to a classifier."""
    n_colours, rows, columns = shape
    if rows != columns or rows > geometry.image_size:
        expected = f"at least {max(rows, columns)}, of square images"
        remedy = "Set image_size to that, or take another source."
        yield "scale_sweep.image_size", expected, geometry.image_size, remedy
    if n_colours not in (1, geometry.n_channels):
        remedy = "Set n_channels to that, or take another source."
        yield "scale_sweep.n_channels", n_colours, geometry.n_channels, remedy


def _mistakes(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    missing = list(_missing_choices(sweep))
    yield from missing
    if missing:
        return
    yield from _unclear_length(sweep)
    yield from _misnamed(sweep["sizes"])
    yield from _wrong_scales(sweep)
    yield from _wrong_images(sweep)
    yield from _empty_parts(sweep, "scale_sweep")
    yield from _shared_seed(sweep, "scale_sweep")
    yield from _missing_library(sweep["optimizers"], "scale_sweep.optimizers")


def _missing_choices(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    for key in PresetChoices:
        if key not in sweep and key not in ("n_epochs", "n_steps"):
            remedy = f"Set {key} in scale_sweep, or in the preset that scale_sweep_preset names."
            yield f"scale_sweep.{key}", "a value, here or in the preset", "nothing", remedy


def _unclear_length(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    lengths = {key: sweep.get(key) for key in ("n_epochs", "n_steps")}
    if list(lengths.values()).count(None) != 1:
        remedy = "Set one of the two to a number, and leave the other out."
        yield "scale_sweep.n_epochs", "either n_epochs or n_steps, the other null", lengths, remedy


def _misnamed(sizes: Mapping[object, object]) -> Iterator[Mistake]:
    remedy = "Rename the scale, in sizes and wherever scales has it."
    for scale in sizes:
        if not isinstance(scale, str):
            expected = "text, which a folder is called by"
            yield "scale_sweep.sizes", expected, scale, "Give the scale a name that starts with a letter."
        elif not SCALE_NAME.fullmatch(scale):
            expected = "names of letters, digits, _ and -, a letter or digit first, which folders are called by"
            yield "scale_sweep.sizes", expected, scale, remedy
        # Not every file system tells small letters from capitals.
        elif scale.lower() in TAKEN_NAMES:
            yield f"scale_sweep.sizes.{scale}", f"another name than {', '.join(TAKEN_NAMES)}", scale, remedy


def _wrong_scales(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    for scale in sweep["scales"]:
        if scale not in sweep["sizes"]:
            expected = "one of " + ", ".join(sweep["sizes"])
            yield "scale_sweep.scales", expected, scale, nearest(scale, sweep["sizes"])
    for scale, sizes in sweep["sizes"].items():
        d_model, n_heads = sizes["d_model"], sizes["n_heads"]
        if d_model % n_heads:
            remedy = f"Set d_model to a multiple of {n_heads}, or n_heads to a divisor of {d_model}."
            yield f"scale_sweep.sizes.{scale}.d_model", f"a multiple of the {n_heads} heads", d_model, remedy


def _wrong_images(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    image_size, patch_size, images = sweep["image_size"], sweep["patch_size"], sweep["images"]
    if image_size % patch_size:
        divisor = next(size for size in range(min(patch_size, image_size), 0, -1) if image_size % size == 0)
        remedy = f"Set patch_size to {divisor}, for one, or image_size to a multiple of {patch_size}."
        yield "scale_sweep.patch_size", f"a divisor of image_size, {image_size}", patch_size, remedy
    if images["source"] == "idx" and images["path"] is None:
        remedy = "Set path to that folder, or take the source digits, which comes with scikit-learn."
        yield "scale_sweep.images.path", "the folder that the IDX files are in", "nothing", remedy
    if images["source"] in SHAPES:
        yield from misfits(SHAPES[images["source"]], geometry_of(sweep))


def _lm_mistakes(sweep: Mapping[str, Any]) -> Iterator[Mistake]:
    unit = 2 * sweep["d_head"]
    for d_model in sweep["d_models"]:
        if d_model % unit:
            remedy = f"Set d_models to multiples of {unit}, or d_head to a number whose double divides {d_model}."
            yield "lm_scale_sweep.d_models", f"a multiple of {unit}, twice d_head", d_model, remedy
    yield from _empty_parts(sweep, "lm_scale_sweep")
    yield from _shared_seed(sweep, "lm_scale_sweep")
    yield from _missing_library(sweep["optimizers"], "lm_scale_sweep.optimizers")


def _empty_parts(sweep: Mapping[str, Any], section: str) -> Iterator[Mistake]:
    batch_size, n_parts = sweep["batch_size"], sweep["training"]["n_accumulate"]
    if isinstance(batch_size, int) and n_parts > batch_size:
        remedy = f"Set n_accumulate to {batch_size} or less; {batch_size} takes the least memory."
        yield f"{section}.training.n_accumulate", f"at most batch_size, {batch_size}", n_parts, remedy


def _shared_seed(sweep: Mapping[str, Any], section: str) -> Iterator[Mistake]:
    """Refuse a tuning seed that is also a run's seed: the chosen rate would favour that run."""
    if len(sweep["multiples"]) > 1 and sweep["tuning_seed"] in sweep["seeds"]:
        expected = f"a seed of its own for trying {len(sweep['multiples'])} learning rates, none of seeds"
        yield f"{section}.tuning_seed", expected, sweep["tuning_seed"], "Set tuning_seed to another number."


def _missing_library(optimizers: list[str], key: str) -> Iterator[Mistake]:
    wanted = [name for name in optimizers if name in OF_LIBRARY]
    if wanted and find_spec(LIBRARY) is None:
        expected = "optimisers of torch (sgd, adamw, muon), or the package that has the others"
        yield key, expected, ", ".join(wanted), f"Install it: {INSTALL}"
