"""The three sources give the same kind of folder, the parts are fixed, and a bad file is named."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pytest
import torch

from outlier_moe.errors import StudyError
from outlier_moe.scale_sweep.image_sources import read_digits
from outlier_moe.scale_sweep.images import PARTS, ImageOptions, ImageParts, prepare_images
from outlier_moe.scale_sweep.study import SHAPES, Geometry

NATIVE = Geometry(8, 1, 2)


def idx_bytes(values: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4) for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def write_idx(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir()
    random = np.random.default_rng(0)
    made = {}
    for part, n_images in (("train", 40), ("t10k", 10)):
        made[part] = random.integers(0, 256, (n_images, 28, 28))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(made[part])))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(n_images) % 10))
    return made


def test_the_digits_are_divided_once_and_for_all(images: Path, tmp_path: Path) -> None:
    facts = json.loads((images / "images.json").read_text())
    assert [facts[f"n_{part}"] for part in ("train", "validation", "test")] == [1347, 180, 270]
    split = pl.read_parquet(images / "split.parquet")
    assert sorted(split["index"]) == list(range(1797))
    targets = read_digits().labels
    for (part,), rows in split.group_by("part"):
        assert np.array_equal(targets[rows.sort("number")["index"]], np.load(images / f"{part}_labels.npy"))
    again = tmp_path / "again"
    prepare_images(again, ImageOptions())
    assert json.loads((again / "images.json").read_text()) == facts
    other = tmp_path / "other"
    prepare_images(other, ImageOptions(seed=1))
    assert json.loads((other / "images.json").read_text())["test_sha256"] != facts["test_sha256"]


def test_images_are_scaled_enlarged_and_coloured(images: Path) -> None:
    plain = ImageParts(images, NATIVE).first("train", 2000)["pixel_values"]
    assert plain.shape == (1347, 1, 8, 8)
    assert plain.mean().item() == pytest.approx(0, abs=1e-4)
    assert plain.std().item() == pytest.approx(1, abs=1e-3)
    large = ImageParts(images, Geometry(32, 3, 4)).first("train", 5)["pixel_values"]
    assert torch.equal(large[:, 1, ::4, ::4], plain[:5, 0])
    assert torch.equal(large[:, 0, 3::4, 1::4], plain[:5, 0])


def test_an_epoch_shows_each_image_once(images: Path) -> None:
    parts = ImageParts(images, NATIVE)
    batches = parts.shuffled(batch_size=449, seed=3)
    epochs = [
        torch.cat([batches(3 * epoch + step)["pixel_values"].flatten(1) for step in range(3)]) for epoch in (0, 1)
    ]
    assert not torch.equal(*epochs)
    assert [len(torch.unique(epoch, dim=0)) for epoch in epochs] == [1347, 1347]
    # A run that goes on asks for later steps only.
    assert torch.equal(parts.shuffled(batch_size=449, seed=3)(4)["labels"], batches(4)["labels"])


def test_idx_files_are_read_packed_or_plain_and_get_a_border(tmp_path: Path) -> None:
    made = write_idx(tmp_path / "idx")
    prepare_images(tmp_path / "out", ImageOptions(source="idx", path=str(tmp_path / "idx"), validation_share=0.25))
    parts = ImageParts(tmp_path / "out", Geometry(32, 3, 4))
    assert [parts.size(part) for part in ("train", "validation", "test")] == [30, 10, 10]
    split = pl.read_parquet(tmp_path / "out/split.parquet").filter(source_part="test").sort("number")
    assert np.array_equal(parts.images["test"][:, 0], made["t10k"][split["index"]])
    pixels = parts.first("test", 1)["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert pixels[0, 0, :2].unique().numel() == 1
    assert parts.first("test", 3)["labels"].tolist() == [index % 10 for index in split["index"][:3]]


def test_the_first_images_of_each_part_are_a_sample_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "idx"
    folder.mkdir()
    # In the order of the classes, as folders of images are often packed.
    for part, n_of_class in (("train", 100), ("t10k", 40)):
        labels = np.repeat(np.arange(10), n_of_class)
        pixels = np.broadcast_to(labels[:, None, None], (len(labels), 4, 4))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(pixels))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    prepare_images(tmp_path / "out", ImageOptions(source="idx", path=str(folder)))
    parts = ImageParts(tmp_path / "out", Geometry(4, 1, 2))
    for part in PARTS:
        assert len(parts.first(part, 60)["labels"].unique()) == 10
        assert np.array_equal(parts.images[part][:, 0, 0, 0], parts.labels[part])
    again, other = tmp_path / "again", tmp_path / "other"
    for output, seed in ((again, 0), (other, 1)):
        prepare_images(output, ImageOptions(source="idx", path=str(folder), seed=seed))
    assert ImageParts(again, Geometry(4, 1, 2)).facts == parts.facts
    assert ImageParts(other, Geometry(4, 1, 2)).facts["test_sha256"] != parts.facts["test_sha256"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        (b"not gzip", "cannot be read"),
        # Its header is gzip's, what is packed is damaged.
        (gzip.compress(b"short" * 99, mtime=0)[:10] + b"\xff" * 40, "cannot be read"),
        (gzip.compress(b"short", mtime=0), "no IDX"),
    ],
)
def test_a_bad_idx_file_is_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    path = tmp_path / "idx/train-images-idx3-ubyte.gz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StudyError, match=says) as caught:
        prepare_images(tmp_path / "out", ImageOptions(source="idx", path=str(tmp_path / "idx")))
    assert caught.value.file == path
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"train": (0, 8, 8)}, "too few images"),
        ({"train": (1, 8, 8)}, "too few images"),
        ({"t10k": (0, 28, 28)}, "too few images"),
        ({"t10k": (4, 14, 14)}, "another size"),
        ({"train": (40, 0, 0)}, "no pixels"),
        ({"train": (40, 28, 0)}, "no pixels"),
    ],
)
def test_images_that_no_sweep_could_use_are_refused(
    shapes: dict[str, tuple[int, int, int]], says: str, tmp_path: Path
) -> None:
    write_idx(tmp_path / "idx")
    for part, shape in shapes.items():
        for side in ("train", "t10k") if part == "train" else (part,):
            of_side = shape if side == part else (5, *shape[1:])
            (tmp_path / f"idx/{side}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(of_side))))
            (tmp_path / f"idx/{side}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(of_side[0])))
    with pytest.raises(StudyError, match=says) as caught:
        prepare_images(tmp_path / "out", ImageOptions(source="idx", path=str(tmp_path / "idx")))
    assert "scale_sweep.images" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_cifar10_comes_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    random = np.random.default_rng(0)

    def part(n_images: int) -> datasets.Dataset:
        pixels = random.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
        packed = []
        for image in pixels:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            packed.append({"bytes": file.getvalue(), "path": None})
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"img": packed, "label": list(range(n_images))}, features=features)

    made = {"train": part(20), "test": part(5)}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split, **_: made[split])
    prepare_images(tmp_path / "out", ImageOptions(source="cifar10"))
    parts = ImageParts(tmp_path / "out", Geometry(32, 3, 4))
    assert [parts.size(of) for of in ("train", "validation", "test")] == [18, 2, 5]
    at = int(parts.labels["test"][2])
    assert np.array_equal(parts.images["test"][2].transpose(1, 2, 0), np.asarray(made["test"][at]["img"]))


def test_a_hub_without_cifar10_says_what_else_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(StudyError) as caught:
        prepare_images(tmp_path / "out", ImageOptions(source="cifar10"))
    assert "uoft-cs/cifar10" in str(caught.value)


def test_images_that_do_not_fit_are_refused(images: Path) -> None:
    with pytest.raises(StudyError) as caught:
        ImageParts(images, Geometry(4, 1, 2))
    assert (caught.value.key, caught.value.expected) == ("scale_sweep.image_size", "at least 8, of square images")


def test_the_shape_that_planning_goes_by_is_that_of_the_digits() -> None:
    assert read_digits().images.shape[1:] == SHAPES["digits"]
