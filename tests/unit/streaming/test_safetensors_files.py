"""What is read of a safetensors file is what the safetensors package reads, and a broken file is told as such."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from outlier_moe.errors import StudyError
from outlier_moe.sources.safetensors_header import ITEM_BYTES, read_header
from outlier_moe.streaming.safetensors_files import TORCH_DTYPES, forget_cached, read_tensors

STORED = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool),
]


@st.composite
def random_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    tensors = {}
    for index in range(draw(st.integers(1, 6))):
        dtype = draw(st.sampled_from(STORED))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        n_bytes = torch.empty(shape, dtype=dtype).nbytes
        content = bytes(draw(st.binary(min_size=n_bytes, max_size=n_bytes)))
        if dtype is torch.bool:
            content = bytes(byte & 1 for byte in content)
        flat = torch.frombuffer(bytearray(content), dtype=torch.uint8) if n_bytes else torch.empty(0, dtype=torch.uint8)
        tensors[f"tensor.{index}"] = flat.view(dtype).reshape(shape).clone()
    return tensors


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


@settings(max_examples=60)
@given(tensors=random_tensors())
def test_tensors_are_those_of_the_package(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    save_file(tensors, path)
    header = read_header(path)
    read = read_tensors(path, header, header)
    expected = load_file(path)
    assert read.keys() == expected.keys()
    assert all(same(read[name], expected[name]) for name in expected)
    for name in expected:
        assert same(read_tensors(path, header, [name])[name], expected[name])


def test_tensors_lie_where_transformers_maps_them(tmp_path: Path) -> None:
    # MKL's results depend on the distance from a cache line's begin.
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(5, 7), "c": torch.ones(11)}, path)
    header = read_header(path)
    read = read_tensors(path, header, header)
    assert {name: x.data_ptr() % 4096 for name, x in read.items()} == {
        name: entry.start % 4096 for name, entry in header.items()
    }
    assert len({entry.start % 64 for entry in header.values()}) > 1


def test_what_the_cache_has_forgotten_is_read_again_and_what_is_mapped_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored = {name: torch.randn(3000, 5) for name in ("a", "b", "c", "d")}
    save_file(stored, path)
    header = read_header(path)
    mapped = read_tensors(path, header, ["d", "a"])
    forget_cached(path, header, ["c", "a", "d"])
    forget_cached(path, header, [])
    assert all(torch.equal(tensor, stored[name]) for name, tensor in mapped.items())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in read_tensors(path, header, header).items())


def test_tensors_can_be_written_to_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3)}, path)
    header = read_header(path)
    read_tensors(path, header, ["a"])["a"].zero_()
    assert torch.equal(read_tensors(path, header, ["a"])["a"], torch.ones(3))


def test_tensors_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.arange(10_000)}, path)
    read = read_tensors(path, read_header(path), ["a"])
    path.unlink()
    assert torch.equal(read["a"], torch.arange(10_000))


def write(path: Path, header: Any, content: bytes = b"") -> Path:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_misaligned_tensors_and_packed_fours_are_read(tmp_path: Path) -> None:
    header = {
        "odd": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "fours": {"dtype": "F4", "shape": [2, 4], "data_offsets": [9, 13]},
    }
    values = struct.pack("<ff", 1.5, -2.5)
    path = write(tmp_path / "x.safetensors", header, b"\7" + values + b"\1\2\3\4")
    read = read_tensors(path, read_header(path), header)
    assert read["odd"].tolist() == [1.5, -2.5]
    assert read["byte"].tolist() == [7]
    assert read["fours"].shape == (2, 2) and read["fours"].dtype == torch.float4_e2m1fn_x2
    assert read["fours"].view(torch.uint8).tolist() == [[1, 2], [3, 4]]


def test_every_dtype_of_the_package_is_known() -> None:
    from safetensors.torch import _TYPES

    assert {name for name in _TYPES if "FNUZ" not in name} <= TORCH_DTYPES.keys()
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == dict(ITEM_BYTES)


ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "content", "problem"),
    [
        (ONE, b"1234", "cut short"),
        (ONE, b"123456789", "no tensor's"),
        (b"{", b"", "no safetensors"),
        ([1], b"", "no safetensors"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"12345678", "no safetensors"),
        ({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}, b"12345678", "no safetensors"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"12345678", "no safetensors"),
    ],
)
def test_a_broken_file_is_told(header: Any, content: bytes, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", header, content)
    with pytest.raises(StudyError, match=problem) as error:
        read_header(path)
    assert error.value.file == path
    assert error.value.remedy


@pytest.mark.parametrize("content", [b"", b"\1\2", b"\xff" * 20, b"version https://git-lfs.github.com/spec/v1\n"])
def test_what_is_no_safetensors_file_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(StudyError, match="no safetensors"):
        read_header(path)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="not there"):
        read_header(tmp_path / "x.safetensors")


def test_a_file_cut_short_after_its_header_was_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(5000)}, path)
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:10_000])
    with pytest.raises(StudyError, match="cut short"):
        read_tensors(path, header, ["a"])
