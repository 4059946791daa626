"""`outlier-moe record`: record one model and show its outlier features, without a study around it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from outlier_moe.commands.places import RECORDINGS
from outlier_moe.config.registry import CorpusEntry, FilesSource
from outlier_moe.definitions.record_options import (
    N_SEQUENCES,
    SEQUENCE_LENGTH,
    Device,
    Dtype,
    ModeOption,
    checked_options,
)
from outlier_moe.errors import StudyError
from outlier_moe.machine.start_up import uncollected
from outlier_moe.sources.named_models import named_entry
from outlier_moe.terminal.presentation import Column, OutputFormat, show_frame

COLUMNS = {
    "preset": Column("preset"),
    "n_systematic": Column("outlier\nfeatures", "count"),
    "n_without_first": Column("without\nfirst token", "count", spare=1),
    "layer_fraction_mean": Column("layers\n%", "percent"),
    "position_fraction_mean": Column("positions\n%", "percent"),
    "peak_largest": Column("largest\n|x|", "magnitude"),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "record",
        help="record one model and show its outlier features, without a study",
        description="Run a model over a text, count what reaches each magnitude, and show its outlier features.",
    )
    parser.add_argument("path_or_id", metavar="PATH_OR_ID", help="a folder, a .gguf file, or owner/name on the hub")
    parser.add_argument("--text", type=Path, help=".txt, .jsonl or .parquet (default: the text that comes with Python)")
    parser.add_argument("--out", type=Path, help=f"the folder to write (default: {RECORDINGS}/ and the model's name)")
    parser.add_argument(
        "--sequences", type=int, metavar="N", help=f"default: {N_SEQUENCES}, or as many as the text has"
    )
    parser.add_argument(
        "--sequence-length",
        type=int,
        metavar="L",
        help=f"tokens (default: {SEQUENCE_LENGTH}, or the model's)",
    )
    for name, kind in (("mode", ModeOption), ("dtype", Dtype), ("device", Device)):
        first = get_args(kind)[0]
        parser.add_argument(f"--{name}", choices=get_args(kind), default=first, help="default: %(default)s")
    parser.add_argument("--chunk", type=_chunk, default="auto", metavar="N", help="sequences at a time (default: auto)")
    parser.add_argument("--floor", type=float, default=3.0, help="lowest |x| that is counted (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="let Python code of the repository run")
    parser.add_argument("--format", choices=get_args(OutputFormat), default="table", help="default: %(default)s")
    parser.set_defaults(run=run)


def _chunk(word: str) -> int | str:
    return word if word == "auto" else int(word)


def run(arguments: argparse.Namespace) -> None:
    """Record the model, print a row for each definition, and say where the recording is.

    Args:
        arguments: The command line.

    Raises:
        StudyError: If the model or the text cannot be had, or something is in the recording's place.
    """
    text = arguments.text
    if text is not None and not text.expanduser().exists():
        raise StudyError("There is no such text.", file=text, remedy="Correct the path given with --text.")
    entry = named_entry(arguments.path_or_id, trust_remote_code=arguments.trust_remote_code)
    out = arguments.out or RECORDINGS / entry.id
    with uncollected():
        from outlier_moe.api import compare, record_entry
        from outlier_moe.sources.given_tokens import Shape

    recording = record_entry(
        entry,
        text and CorpusEntry(text.name, FilesSource((str(text),)), max_characters=sys.maxsize),
        shape=Shape(arguments.sequences, arguments.sequence_length),
        options=checked_options(
            {name: getattr(arguments, name) for name in ("mode", "dtype", "device", "chunk", "floor")}
        ),
        out=out,
    )
    table = compare([recording])
    key = ["model", "preset"]
    without_first = table.filter(first_token="excluded").select(*key, n_without_first="n_systematic")
    shown = table.filter(first_token="included").join(without_first, on=key, validate="1:1", maintain_order="left")
    run = recording.run
    title = f"{recording.model}: {run['n_sequences']} x {run['sequence_length']} tokens, {run['mode']}"
    show_frame(shown if arguments.format == "table" else table, COLUMNS, output_format=arguments.format, title=title)
    sys.stderr.write(f'The recording: {out}   (from Python: outlier_moe.load("{out}"))\n')
