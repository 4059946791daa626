"""How long 10,000 resamples of one model's sequences take, and how much memory: `python benchmarks/bootstrap.py`.

The tables are made up, as large as those of Qwen3-1.7B (28 layers, d_model 2048, 16 sequences) with dense outliers: at
|x| >= 6 most features are systematic or could be. The first call compiles and is not timed.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

# As Snakemake sets it for a job: the library's own threads wait by spinning.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from made_up_tables import MadeUpModel, write_made_up

from outlier_moe.judging.filtering import Preset
from outlier_moe.judging.sequence_counts import SequenceCounts, write_sequence_counts
from outlier_moe.judging.stored_tables import stored_tables
from outlier_moe.statistics.bootstrap import BootstrapOptions, resample_model
from outlier_moe.statistics.resampled_intervals import bootstrap_comparison
from outlier_moe.statistics.stability import stability
from outlier_moe.tables.recording import Recording, read_recording

PRESETS = [
    Preset("dettmers2022", "systematic", "linear_inputs", 6.0),
    Preset("survey2025", "systematic", "linear_inputs", 6.0, layers="sites", unit="feature_sequence"),
    Preset("residual", "systematic", "residual", 6.0),
    Preset("scale_free", "systematic", "residual_rms", 6.0),
    Preset("sun2024", "massive", "residual", 100.0),
]


def peak_memory_gib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(recording: Recording, counts: SequenceCounts, presets: list[Preset], options: BootstrapOptions) -> None:
    """Print what the resampling of some presets takes."""
    started, before = time.perf_counter(), time.process_time()
    tables = list(stored_tables(recording, counts, presets))
    candidates = ", ".join(str(table.candidates().peak.shape[1]) for table in tables)
    read = time.perf_counter()
    resamples = resample_model(recording, presets, model="large", tables=tables, options=options)
    resampled = time.perf_counter()
    figures = bootstrap_comparison(resamples)
    done, spent = time.perf_counter(), time.process_time() - before
    print(f"{', '.join(preset.name for preset in presets)}: {len(figures)} figures, {options.n_resamples} resamples")
    print(f"  candidate features, first token included and excluded: {candidates}")
    print(f"  reading {read - started:.2f} s, resampling {resampled - read:.2f} s")
    print(f"  all of it {done - started:.2f} s, of processor time {spent:.2f} s")
    print(f"  intervals {done - resampled:.2f} s; peak memory so far {peak_memory_gib():.2f} GiB")


def _counts(outliers: Path) -> SequenceCounts:
    """What each sequence of a recording counts, written beside it."""
    directory = outliers.with_name(f"{outliers.name}_counts")
    write_sequence_counts(read_recording(outliers), [each for each in PRESETS if each.rule == "massive"], directory)
    return SequenceCounts(directory)


def main() -> None:
    """Print the time and the memory of each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--d-model", type=int, default=2048)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--resamples", type=int, default=10_000)
    arguments = parser.parse_args()
    options = BootstrapOptions(n_resamples=arguments.resamples)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small", Path(folder) / "large"
        write_made_up(small, MadeUpModel("small", 0, n_layers=2, d_model=512, n_sequences=arguments.sequences))
        size = {"n_layers": arguments.layers, "d_model": arguments.d_model, "n_sequences": arguments.sequences}
        write_made_up(large, MadeUpModel("large", 0, **size))
        compiled, counts = read_recording(small), _counts(small)
        tables = stored_tables(compiled, counts, PRESETS)
        resample_model(compiled, PRESETS, model="small", tables=tables, options=options)
        print(f"peak memory before (making the tables included): {peak_memory_gib():.2f} GiB")
        recording = read_recording(large)
        counts = _counts(large)
        measure(recording, counts, PRESETS[:1], options)
        measure(recording, counts, PRESETS, options)
        started = time.perf_counter()
        tables = stored_tables(recording, counts, PRESETS[:1])
        stability(recording, PRESETS[:1], model="large", tables=tables)
        print(f"stability of {PRESETS[0].name}: {time.perf_counter() - started:.2f} s")


if __name__ == "__main__":
    main()
