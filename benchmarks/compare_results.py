"""Whether two results folders hold the same: `python benchmarks/compare_results.py BEFORE AFTER`.

For whoever has changed the code, updated a library, or copied a study. Every file of either folder is held against its
namesake: Parquet and Arrow tables value by value (with `nan` equal to itself, and without the metadata), safetensors
and arrays bit by bit, JSON key by key. Left out are times, versions and places, which no two runs share, and pages and
pictures, which are drawn from the tables; `--all` compares those byte by byte as well.

It prints what differs and how much, ends with a count, and its status is 0 if nothing differs, 1 if something does, and
2 if there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load_file

DRAWN = {".html", ".png", ".svg"}
# Columns and keys, by pattern, that say when, where and by what something was made.
INCIDENTAL = (
    *(
        "time_s",
        "time_*_s",
        "processor_time_s",
        "peak_memory_bytes",
        "*_per_s",
        "step_of_job",
        "step_time_s",
        "started",
        "finished",
        "*_at_utc",
    ),
    *(
        "*version*",
        "versions",
        "python",
        "host",
        "hostname",
        "device",
        "machine",
        "created",
        "path",
        "folder",
        "log_file",
    ),
)


def is_incidental(name: str) -> bool:
    """Whether a column or key says when, where or by what something was made."""
    return name not in ("diverged_at",) and any(fnmatch(name, pattern) for pattern in INCIDENTAL)


def files_of(folder: Path, *, everything: bool) -> dict[str, Path]:
    """The files of a folder that are compared, by their paths below it."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    # What begins with a dot is Snakemake's, or what a job goes on from.
    shown = {name: path for name, path in found.items() if not any(part.startswith(".") for part in Path(name).parts)}
    return {name: path for name, path in shown.items() if everything or path.suffix not in DRAWN}


def differences(before: Path, after: Path) -> Iterator[str]:
    """What differs between two files of one name."""
    match before.suffix:
        case ".parquet" | ".arrow":
            read = pl.read_parquet if before.suffix == ".parquet" else pl.read_ipc
            yield from of_tables(*map(read, (before, after)))
        case ".jsonl":
            yield from of_tables(pl.read_ndjson(before), pl.read_ndjson(after))
        case ".json":
            yield from of_documents(*(json.loads(path.read_text(encoding="utf-8")) for path in (before, after)))
        case ".npy":
            yield from of_arrays({"array": np.load(before)}, {"array": np.load(after)})
        case ".safetensors":
            yield from of_arrays(load_file(before), load_file(after))
        case _:
            if before.read_bytes() != after.read_bytes():
                yield f"other bytes ({before.stat().st_size:,} and {after.stat().st_size:,})"


def of_tables(before: pl.DataFrame, after: pl.DataFrame) -> Iterator[str]:
    """What differs between two tables."""
    for missing, of in (
        (set(before.columns) - set(after.columns), "after"),
        (set(after.columns) - set(before.columns), "before"),
    ):
        if missing:
            yield f"no column {', '.join(sorted(missing))} {of}"
    if len(before) != len(after):
        yield f"{len(before):,} rows before, {len(after):,} after"
        return
    if "metric" in before.columns and before["metric"].equals(after.get_column("metric", default=pl.Series())):
        # Long tables name what they measure in a column, and some of it is time.
        kept = pl.Series([not is_incidental(str(metric)) for metric in before["metric"]], dtype=pl.Boolean)
        before, after = before.filter(kept), after.filter(kept)
    for name in before.columns:
        if name not in after.columns or is_incidental(name):
            continue
        old, new = before[name], after[name]
        if old.dtype != new.dtype:
            yield f"column {name}: {old.dtype} before, {new.dtype} after"
            continue
        n_other = int((~old.eq_missing(new)).sum())
        if n_other:
            yield f"column {name}: {n_other:,} of {len(old):,} values differ{largest_gap(old, new)}"


def largest_gap(old: pl.Series, new: pl.Series) -> str:
    """By how much the numbers of two columns differ at most."""
    if not old.dtype.is_numeric():
        return ""
    gap = (old.cast(pl.Float64) - new.cast(pl.Float64)).abs().max()
    return f", by {gap:.3g} at most"


def of_documents(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """What differs between two JSON documents."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            if is_incidental(name):
                continue
            path = f"{key}.{name}" if key else name
            if name not in before or name not in after:
                yield f"no key {path} {'before' if name not in before else 'after'}"
            else:
                yield from of_documents(before[name], after[name], path)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from of_documents(*pair, f"{key}[{index}]")
    elif before != after and not (before != before and after != after):
        yield f"key {key}: {short(before)} before, {short(after)} after"


def short(value: Any) -> str:
    """A value, cut to what a line holds."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def of_arrays(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> Iterator[str]:
    """What differs between named arrays, bit by bit."""
    for name in sorted(before.keys() ^ after.keys()):
        yield f"no tensor {name} {'before' if name in after else 'after'}"
    for name in sorted(before.keys() & after.keys()):
        old, new = before[name], after[name]
        if old.shape != new.shape or old.dtype != new.dtype:
            yield f"tensor {name}: {old.dtype} {old.shape} before, {new.dtype} {new.shape} after"
        elif old.tobytes() != new.tobytes():
            gap = np.abs(old.astype(np.float64) - new.astype(np.float64)).max()
            yield f"tensor {name}: other bits, by {gap:.3g} at most"


def main() -> int:
    """Print what differs; the status is that of `diff`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a results folder")
    parser.add_argument("after", type=Path, help="another")
    parser.add_argument("--all", action="store_true", help="compare pages and pictures too")
    arguments = parser.parse_args()
    folders = [arguments.before, arguments.after]
    for folder in folders:
        if not folder.is_dir():
            print(f"{folder} is no folder.", file=sys.stderr)
            return 2
    before, after = (files_of(folder, everything=arguments.all) for folder in folders)
    if not before.keys() & after.keys():
        print("The folders have no file in common that is compared.", file=sys.stderr)
        return 2
    n_other = 0
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            found = [f"only in {arguments.after if name in after else arguments.before}"]
        else:
            found = list(differences(before[name], after[name]))
        n_other += bool(found)
        for line in found:
            print(f"{name}: {line}")
    print(f"{len(before.keys() & after.keys())} files in both folders, {n_other} that differ")
    return int(n_other > 0)


if __name__ == "__main__":
    sys.exit(main())
