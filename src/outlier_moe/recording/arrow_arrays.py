"""Arrays for Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa


def arrow_array(values: np.ndarray | Sequence[str]) -> pa.Array:
    """Values as Arrow's, by polars: Arrow's own way imports pandas, which costs each recording half a second."""
    return pl.Series(values).to_arrow()
