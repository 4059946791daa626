"""Where labelled images come from: scikit-learn's digits, CIFAR-10 of the hub, IDX files of a folder."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.study import IDX_FILES, idx_path

CIFAR10 = "uoft-cs/cifar10"
UNSIGNED_BYTES = 8
"""IDX's number for its one kind of value that images have."""


class LabelledImages(NamedTuple):
    """Images with their classes."""

    images: UInt8[np.ndarray, "image colour row column"]
    """From 0 to 255."""
    labels: Int64[np.ndarray, " image"]
    """Zero-based."""


def read_digits() -> LabelledImages:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which come with the package; 0 to 16 become 0 to 240."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    images = (15 * np.asarray(found["images"])).astype(np.uint8)[:, None]
    return LabelledImages(images, np.asarray(found["target"], np.int64))


def read_cifar10() -> tuple[LabelledImages, LabelledImages]:
    """CIFAR-10's 50,000 and 10,000 images of 32 x 32 pixels, from the hub or its cache.

    Raises:
        StudyError: If neither has it.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    from outlier_moe.sources.hub import retry
    from outlier_moe.sources.hub_answers import explain_refusals, token

    key = "scale_sweep.images.source"

    def loaded(part: str) -> Any:
        return retry(lambda: load_dataset(CIFAR10, split=part, token=token()))

    with explain_refusals(f"datasets/{CIFAR10}", "main", key=key):
        try:
            parts = [loaded(part) for part in IDX_FILES]
        except (DatasetsError, ConnectionError) as error:
            raise StudyError(
                "CIFAR-10 cannot be had.",
                key=key,
                expected=f"{CIFAR10} on the hub, or in the cache of datasets",
                got=" ".join(str(error).split())[:300],
                remedy="Take the source digits, which comes with scikit-learn, or idx, a folder of your own.",
            ) from error
    train, test = (
        LabelledImages(
            np.stack([np.asarray(image.convert("RGB"), np.uint8) for image in part["img"]]).transpose(0, 3, 1, 2),
            np.asarray(part["label"], np.int64),
        )
        for part in parts
    )
    return train, test


def read_idx(folder: Path) -> tuple[LabelledImages, LabelledImages]:
    """A folder with the four files of MNIST and its kin, plain or packed by gzip.

    Raises:
        StudyError: If one is missing or is no IDX file of bytes.
    """
    found = []
    for images, labels in IDX_FILES.values():
        pixels = _read_idx_file(folder, images, n_dimensions=3)
        classes = _read_idx_file(folder, labels, n_dimensions=1)
        if len(pixels) != len(classes):
            raise StudyError(
                "Images and labels differ in number.", file=folder / labels, expected=len(pixels), got=len(classes)
            )
        found.append(LabelledImages(pixels[:, None], classes.astype(np.int64)))
    train, test = found
    if train.images.shape[1:] != test.images.shape[1:]:
        raise StudyError(
            "Test images have another size than those to train on.",
            file=folder / IDX_FILES["test"][0],
            key="scale_sweep.images.path",
            expected=list(train.images.shape[2:]),
            got=list(test.images.shape[2:]),
        )
    return train, test


def _read_idx_file(folder: Path, name: str, *, n_dimensions: int) -> np.ndarray:
    path = idx_path(folder, name)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise StudyError(
            "An IDX file cannot be read.",
            file=path,
            key="scale_sweep.images.path",
            expected=f"{name} or {name}.gz",
            got=str(error),
            remedy="Point scale_sweep.images.path to the folder that has the four files.",
        ) from error
    header = 4 + 4 * n_dimensions
    shape = tuple(int.from_bytes(content[at : at + 4]) for at in range(4, header, 4))
    if content[:4] != bytes([0, 0, UNSIGNED_BYTES, n_dimensions]) or len(content) != header + math.prod(shape):
        raise StudyError(
            "A file is no IDX file of bytes.",
            file=path,
            expected=f"{n_dimensions} dimensions, and as many bytes as they say",
            got=f"{len(content)} bytes that start with {content[:4].hex()}",
        )
    if 0 in shape[1:]:
        raise StudyError(
            "The images of an IDX file have no pixels.",
            file=path,
            key="scale_sweep.images.path",
            expected="images of at least 1 x 1 pixels",
            got=" x ".join(map(str, shape[1:])),
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
