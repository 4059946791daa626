"""Predicted peak memory of a recording beside the measured one, in both modes. Each run is a process of its own.

    python benchmarks/plan_memory.py MODEL [--sequences 4] [--length 512]

MODEL is a folder that fetch_model wrote, such as that of SmolLM2, or llama or mixtral for a random checkpoint of 0.9 or
0.8 billion parameters in bfloat16. The tokens are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from random_checkpoints import SHAPES, VOCABULARY, build_checkpoint


def run_child(model: Path, mode: str, shape: tuple[int, int], folder: Path) -> None:
    """Record in this process and print its peak memory."""
    import numpy as np

    from outlier_moe.architectures.model_class import read_config
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.recording.record import record_outliers
    from outlier_moe.sources.tokenization import TokenTable, tokens_sha256, write_tokens

    vocabulary = read_config(model).get_text_config().vocab_size
    rows = np.random.default_rng(0).integers(0, vocabulary, shape).astype(np.uint32)
    metadata = {"n_sequences": shape[0], "sequence_length": shape[1], "tokens_sha256": tokens_sha256(rows)}
    write_tokens(TokenTable(rows, metadata), folder / "tokens.arrow")
    options = RecordOptions(mode="resident" if mode == "resident" else "streamed", device="cpu")
    record_outliers(model, folder / "tokens.arrow", folder / "outliers", options)
    print(json.loads((folder / "outliers/run.json").read_text())["peak_memory_bytes"]["process"])


def build_model(name: str, directory: Path) -> None:
    """Write a random checkpoint as fetch_model would, with a tokenizer whose words are numbers."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from outlier_moe.sources.origin import FetchedFile, Origin, write_origin

    build_checkpoint(name, directory)
    files = tuple(FetchedFile(path.name, path.stat().st_size, None) for path in sorted(directory.iterdir()))
    origin = Origin(
        name, "directory", str(directory), None, None, ".", "bfloat16", trust_remote_code=False, files=files
    )
    write_origin(origin, directory)
    words = WordLevel({str(number): number for number in range(VOCABULARY)}, unk_token="0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words)).save_pretrained(directory)


def main() -> None:
    """Print a line for each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--child", choices=["resident", "streamed"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if str(arguments.model) in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            build_model(str(arguments.model), Path(folder) / arguments.model)
            command = [sys.executable, __file__, str(Path(folder) / arguments.model)]
            command += ["--sequences", str(arguments.sequences), "--length", str(arguments.length)]
            subprocess.run(command, check=True)
        return
    shape = (arguments.sequences, arguments.length)
    if arguments.child:
        return run_child(arguments.model, arguments.child, shape, arguments.folder)
    from outlier_moe.architectures.model_class import read_config
    from outlier_moe.planning.plan import mode_memory
    from outlier_moe.planning.sizes import model_sizes
    from outlier_moe.planning.workload import Workload

    memory = mode_memory(model_sizes(read_config(arguments.model)), Workload(*shape), device="cpu")
    for mode, need in memory.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(arguments.model), "--child", mode, "--folder", folder]
            command += ["--sequences", str(shape[0]), "--length", str(shape[1])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured, predicted = int(done.stdout.split()[-1]), need.process.total
        print(
            f"{arguments.model.name} {shape[0]} x {shape[1]} {mode}: predicted {predicted / 2**20:.0f} MiB, "
            f"measured {measured / 2**20:.0f} MiB, {predicted / measured - 1:+.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
