"""Sketches that are kept are the sketches that were made, whatever comes after them."""

import gc

import numpy as np
import pytest
import torch

from outlier_moe.definitions.ladder import Ladder
from outlier_moe.recording import keeping
from outlier_moe.recording.keeping import Keeping
from outlier_moe.recording.sketch import SiteSketch, sketch_site


def made(seed: int) -> SiteSketch:
    """A sketch with some rows."""
    x = 3 * torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(seed))
    return sketch_site(x, ladder=Ladder(floor=3.0))


def test_what_is_kept_is_equal_and_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BLOCK_BYTES", 20_000)
    memory = Keeping()
    sketches = [made(seed) for seed in range(8)]
    kept = [memory.keep(sketch) for sketch in sketches]
    del memory
    gc.collect()
    for sketch, copy in zip(sketches, kept, strict=True):
        for name in SiteSketch._fields:
            expected, found = getattr(sketch, name), getattr(copy, name)
            np.testing.assert_array_equal(found, expected, err_msg=name)
            assert np.asarray(found).dtype == np.asarray(expected).dtype, name


def test_what_is_larger_than_a_block_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "BLOCK_BYTES", 64)
    sketch = made(0)
    np.testing.assert_array_equal(Keeping().keep(sketch).n_positions, sketch.n_positions)
