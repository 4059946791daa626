"""A GGUF file is read once while it is converted, and anew afterwards."""

from __future__ import annotations

from pathlib import Path

import gguf

from outlier_moe.sources.gguf_reading import read_once


def test_readers_and_maps_are_kept_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        assert gguf.GGUFReader(path) is gguf.GGUFReader(path)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert names is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert names is not gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
    assert gguf.GGUFReader(path) is not gguf.GGUFReader(path)
