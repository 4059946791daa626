"""Labelled images as a folder: three fixed parts, from scikit-learn, the hub, or IDX files, in the same form."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn.functional import pad

from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.image_sources import LabelledImages, read_cifar10, read_digits, read_idx
from outlier_moe.scale_sweep.study import Geometry, misfits
from outlier_moe.tables.files import write_table
from outlier_moe.tables.whole_outputs import whole_directory
from outlier_moe.training.steps import Batch, BatchSource

log = logging.getLogger(__name__)

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
FACTS = "images.json"
SPLIT = "split.parquet"


@dataclass(frozen=True)
class ImageOptions:
    """Which images, and how they are divided."""

    source: Literal["digits", "cifar10", "idx"] = "digits"
    """`digits`: scikit-learn's own; `cifar10`: of the hub; `idx`: a folder of IDX files, as MNIST has them."""
    path: str | None = None
    """The folder of `idx`."""
    validation_share: float = 0.1
    """Of the images that the source gives for training, which are all where it has no test part of its own: never
    trained on; learning rates are chosen by them."""
    test_share: float = 0.15
    """Of all images, where the source has no test part of its own."""
    seed: int = 0
    """Decides the parts, and the order of the images in each."""


def prepare_images(output: Path, options: ImageOptions) -> None:
    """Write a folder with the images and labels of each part (.npy), which image is in which, and what they are.

    Each part is in a drawn order, whatever that of the source: its first images are a sample of it.

    Args:
        output: The folder; it appears when it is whole.
        options: Which images.

    Raises:
        StudyError: If they cannot be had, or are too few for all parts.
    """
    train, test = _read(options)
    kinds = _divided(train, test, options)
    _refuse_empty(kinds.parts, options)
    facts = {
        "source": options.source,
        "n_classes": int(max(train.labels.max(), 0 if test is None else test.labels.max())) + 1,
        "shape": list(train.images.shape[1:]),
    }
    with whole_directory(output) as partial:
        for part, chosen in kinds.parts.items():
            np.save(partial / f"{part}_images.npy", chosen.images)
            np.save(partial / f"{part}_labels.npy", chosen.labels)
            digest = hashlib.sha256(chosen.images.tobytes() + chosen.labels.tobytes()).hexdigest()
            facts |= {f"n_{part}": len(chosen.labels), f"{part}_sha256": digest}
        scaled = kinds.parts["train"].images.astype(np.float64) / 255
        axes = (0, 2, 3)
        facts |= {"mean": scaled.mean(axis=axes).tolist(), "std": np.maximum(scaled.std(axis=axes), 1e-6).tolist()}
        write_table(kinds.split, partial / SPLIT)
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    log.info("%s: %s", options.source, ", ".join(f"{facts[f'n_{part}']} {part}" for part in PARTS))


def _refuse_empty(parts: Mapping[Part, LabelledImages], options: ImageOptions) -> None:
    sizes = {part: len(of.labels) for part, of in parts.items()}
    if min(sizes.values()) == 0:
        raise StudyError(
            "There are too few images to divide.",
            file=options.path,
            key="scale_sweep.images",
            expected="at least one to train on, one to choose learning rates by and one to test on",
            got=", ".join(f"{n} for {part}" for part, n in sizes.items()),
        )


def _read(options: ImageOptions) -> tuple[LabelledImages, LabelledImages | None]:
    match options.source:
        case "digits":
            return read_digits(), None
        case "cifar10":
            return read_cifar10()
        case "idx":
            return read_idx(Path(options.path or ""))


class _Divided(NamedTuple):
    parts: dict[Part, LabelledImages]
    """The images of each part."""
    split: pl.DataFrame
    """Per image: the source's own part, its number there, the part that it is in, and its number in that."""


def _divided(train: LabelledImages, test: LabelledImages | None, options: ImageOptions) -> _Divided:
    random = np.random.default_rng(options.seed)
    order = random.permutation(len(train.labels))
    n_test = round(options.test_share * len(order)) if test is None else 0
    n_validation = max(1, round(options.validation_share * len(order)))
    chosen: dict[Part, np.ndarray] = {
        "test": order[:n_test],
        "validation": order[n_test : n_test + n_validation],
        "train": order[n_test + n_validation :],
    }
    sources = dict.fromkeys(PARTS, train)
    if test is not None:
        # Some sources are in the order of the classes, and of MNIST's test images the first half is the easier one.
        chosen["test"], sources["test"] = random.permutation(len(test.labels)), test
    parts: dict[Part, LabelledImages] = {
        part: LabelledImages(sources[part].images[at], sources[part].labels[at]) for part, at in chosen.items()
    }
    rows = [
        {"source_part": "train" if sources[part] is train else "test", "index": index, "part": part, "number": number}
        for part in PARTS
        for number, index in enumerate(chosen[part].tolist())
    ]
    return _Divided(parts, pl.DataFrame(rows))


class ImageParts:
    """The parts of a folder, as a classifier takes them.

    Args:
        folder: What `prepare_images` wrote.
        geometry: What an image is to the classifier: smaller images are enlarged by whole factors or get a black
            border, grey ones are repeated for each colour.

    Raises:
        StudyError: If the images do not fit.
    """

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        self.facts: dict = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.geometry = geometry
        self.images = {part: np.load(folder / f"{part}_images.npy", mmap_mode="r") for part in PARTS}
        self.labels = {part: torch.from_numpy(np.load(folder / f"{part}_labels.npy")) for part in PARTS}
        _refuse_misfit(self.facts["shape"], geometry, file=folder / FACTS)

    def size(self, part: Part) -> int:
        """Number of images in a part."""
        return len(self.labels[part])

    def batch(self, part: Part, chosen: Int64[np.ndarray, " image"]) -> Batch:
        """Some images of a part with their labels."""
        pixels = torch.from_numpy(np.asarray(self.images[part][chosen]))
        return {"pixel_values": self._prepared(pixels), "labels": self.labels[part][torch.from_numpy(chosen)]}

    def first(self, part: Part, n_images: int) -> Batch:
        """The first images of a part: all of them if it has no more."""
        return self.batch(part, np.arange(min(n_images, self.size(part))))

    def shuffled(self, *, batch_size: int, seed: int) -> BatchSource:
        """Batches of the training images: each once an epoch, in another order each time; what is left over waits."""
        n_images = self.size("train")
        per_epoch = max(1, n_images // batch_size)
        orders: dict[int, np.ndarray] = {}

        def batch(step: int) -> Batch:
            epoch, index = divmod(step, per_epoch)
            if epoch not in orders:
                orders.clear()
                orders[epoch] = np.random.default_rng((seed, epoch)).permutation(n_images)
            return self.batch("train", orders[epoch][index * batch_size : (index + 1) * batch_size])

        return batch

    def _prepared(self, pixels: UInt8[Tensor, "image colour row column"]) -> Float[Tensor, "image channel y x"]:
        size, side = self.geometry.image_size, pixels.shape[-1]
        if size % side == 0:
            pixels = pixels.repeat_interleave(size // side, dim=-1).repeat_interleave(size // side, dim=-2)
        else:
            border = (size - side) // 2
            pixels = pad(pixels, [border, size - side - border] * 2)
        mean, std = (torch.tensor(self.facts[name])[None, :, None, None] for name in ("mean", "std"))
        return ((pixels.float() / 255 - mean) / std).expand(-1, self.geometry.n_channels, -1, -1).contiguous()


def _refuse_misfit(shape: list[int], geometry: Geometry, *, file: Path) -> None:
    for key, expected, got, remedy in misfits(shape, geometry):
        raise StudyError(
            "The images do not fit the classifier.", file=file, key=key, expected=expected, got=got, remedy=remedy
        )
