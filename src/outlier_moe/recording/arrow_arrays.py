"""Arrays for Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa


def arrow_array(values: np.ndarray | Sequence[str]) -> pa.Array:
    """Values as Arrow's: numbers share their memory, a text is made by polars.

    Arrow's own way imports pandas, which costs each recording half a second.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        memory = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, memory])
    return pl.Series(values).to_arrow()
