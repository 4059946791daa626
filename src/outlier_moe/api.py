"""The way in from Python: record any model, ask its recording, put recordings side by side.

import outlier_moe as om

recording = om.record(model, tokens)
recording.systematic("dettmers2022")
recording.save("mine")
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from outlier_moe.definitions.presets import DEFAULT_PRESET, FIRST_TOKENS, PRESETS, FirstToken, Preset, preset_named
from outlier_moe.definitions.record_options import RecordOptions, checked_options
from outlier_moe.errors import StudyError
from outlier_moe.judging.filtering import systematic_features, unanswered
from outlier_moe.recording.kept_recordings import RUN
from outlier_moe.tables.recording import Recording as Tables
from outlier_moe.tables.recording import explain_damage, read_recording
from outlier_moe.tables.whole_outputs import whole_directory

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from outlier_moe.config.registry import ModelEntry
    from outlier_moe.plots.recording_plots import RecordingPlots
    from outlier_moe.sources.given_tokens import Shape

__all__ = ["Recording", "compare", "load", "record", "record_entry"]


class Recording:
    """What a model's taps have shown, as tables in a folder.

    A recording that was not saved lies in a temporary folder, which goes with this object.
    """

    def __init__(self, directory: Path, *, is_temporary: bool = False) -> None:
        self.tables: Tables = read_recording(directory)
        """The tables themselves, lazily; `tables.layer_outliers()` is what `layers()` reads."""
        self._remove = weakref.finalize(self, shutil.rmtree, directory.parent, True) if is_temporary else None

    def __repr__(self) -> str:
        """One line for a notebook."""
        run = self.run
        tokens = f"{run['n_sequences']} x {run['sequence_length']} tokens"
        return f"<Recording of {self.model}: {run['n_layers']} layers of width {run['d_model']}, {tokens}>"

    @property
    def model(self) -> str:
        """The model's name."""
        return self.run["model"]

    @property
    def run(self) -> dict[str, Any]:
        """How it was made: run.json."""
        return self.tables.run

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self.tables.directory

    @property
    def plot(self) -> RecordingPlots:
        """Its pictures, as altair charts."""
        from outlier_moe.plots.recording_plots import RecordingPlots

        return RecordingPlots(self.tables, keeps=self)

    def systematic(
        self,
        preset: str = DEFAULT_PRESET,
        *,
        magnitude: float | None = None,
        layer_fraction: float | None = None,
        position_fraction: float | None = None,
        first_token: FirstToken = "included",
    ) -> pl.DataFrame:
        """The features that are systematic by a definition: rows of `schemas.Systematic`.

        Args:
            preset: The definition's name.
            magnitude: The |x| from which a value counts, an edge of the ladder; the published one by default.
            layer_fraction: The least fraction of layers affected, likewise.
            position_fraction: The least fraction of positions affected, likewise.
            first_token: Whether the first token of each sequence counts.

        Raises:
            StudyError: If there is no such definition, or it cannot be asked of this recording.
        """
        if first_token not in FIRST_TOKENS:
            raise StudyError("No such setting.", key="first_token", expected=" or ".join(FIRST_TOKENS), got=first_token)
        chosen = preset_named(
            preset, magnitude=magnitude, layer_fraction=layer_fraction, position_fraction=position_fraction
        )
        return systematic_features(self.tables, [chosen]).filter("is_systematic", first_token=first_token)

    def layers(self) -> pl.DataFrame:
        """The rows of all layers, `schemas.LayerOutlier`: every feature that reaches the floor, by tap and sequence."""
        with explain_damage(self.tables):
            return self.tables.layer_outliers().collect()

    def sites(self) -> pl.DataFrame:
        """The distribution of values at each tap, layer and sequence: `schemas.Site`."""
        return self.tables.sites()

    def peaks(self) -> pl.DataFrame:
        """The largest activations, with their tokens: `schemas.Peak`."""
        return self.tables.peaks()

    def experts(self) -> pl.DataFrame | None:
        """The load and the peaks of each expert: `tables.moe.Expert`; None for a dense model."""
        return self.tables.experts()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the recording to a folder, as the workflow writes it; from then on it lies there.

        Raises:
            StudyError: If something is there already.
        """
        target = _vacant(path, key="path")
        with whole_directory(target) as partial:
            shutil.copytree(self.directory, partial, dirs_exist_ok=True)
        self.tables = read_recording(target)
        if self._remove is not None:
            self._remove()
        return target


def record(
    model: PreTrainedModel | str | os.PathLike[str],
    tokens: Any = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    n_sequences: int | None = None,
    sequence_length: int | None = None,
    bos: str = "tokenizer",
    name: str | None = None,
    trust_remote_code: bool = False,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Recording:
    """Run a model over tokens and record what its taps show.

    Args:
        model: A transformers model in memory, which is left as it was found; or a folder, a GGUF file, or a repository
            of the hub, which runs layer by layer if it does not fit into memory.
        tokens: Ids of tokens, [sequence, position] or one sequence; a text, or a list of texts; or None for the text
            that comes with Python.
        tokenizer: The tokenizer of a model in memory; by default that of the folder or repository that it came from.
        n_sequences: Sequences that a text is cut into; by default 16, or as many as there are.
        sequence_length: Tokens of each; by default 2048, or as many as the model was made for.
        bos: Whether each sequence of a text starts with BOS: `always`, `never`, or as the `tokenizer` does.
        name: The model's name in tables; by default that of its folder or repository.
        trust_remote_code: Whether Python code of a repository may run.
        out: A folder to write to at once: an interrupted recording of a path or repository is then taken up by the
            next call. By default a temporary one, which `Recording.save` copies.
        options: Fields of `RecordOptions`: taps, floor, n_peaks, dtype, device, mode, chunk, evict.

    Raises:
        StudyError: If the model cannot be recorded, or the tokens are none of its.
    """
    from outlier_moe.sources.given_tokens import Shape

    chosen, shape = checked_options(options), Shape(n_sequences, sequence_length, bos)  # type: ignore[arg-type]
    if isinstance(model, str | os.PathLike):
        from outlier_moe.sources.named_models import named_entry

        if tokenizer is not None:
            remedy = "Leave it out: a path comes with its own. Or give the ids of tokens."
            raise StudyError("A tokenizer is for models in memory.", key="tokenizer", remedy=remedy)
        entry = named_entry(os.fspath(model), trust_remote_code=trust_remote_code)
        entry = entry if name is None else replace(entry, id=name)
        return record_entry(entry, tokens, shape=shape, options=chosen, out=out)
    from outlier_moe.recording.in_memory import held_model, record_model
    from outlier_moe.sources.given_tokens import given_tokens
    from outlier_moe.sources.held_tokenizer import decoder, held_reader

    held = held_model(model)
    reader = held_reader(held.model, tokenizer, name)
    table = given_tokens(tokens, reader, shape)
    decode = decoder(held.model, reader, tokenizer, table)
    return _recorded(out, lambda output: record_model(held, table, output, chosen, name=reader.name, decode=decode))


def record_entry(
    entry: ModelEntry,
    tokens: Any = None,
    *,
    shape: Shape,
    options: RecordOptions,
    out: str | os.PathLike[str] | None = None,
) -> Recording:
    """Record a model from where an entry of a registry says that it comes from; the rest as for `record`."""
    from outlier_moe.recording.record import record_outliers
    from outlier_moe.sources.given_tokens import fetched_reader, given_tokens
    from outlier_moe.sources.models import fetch_model
    from outlier_moe.sources.tokenization import write_tokens

    if out is not None:
        _vacant(out, key="out")
    with tempfile.TemporaryDirectory(prefix="outlier-moe-") as scratch:
        fetched, written = Path(scratch) / "model", Path(scratch) / "tokens.arrow"
        try:
            fetch_model(entry, fetched)
            write_tokens(given_tokens(tokens, fetched_reader(entry, fetched), shape), written)
            return _recorded(out, lambda output: record_outliers(fetched, written, output, options))
        except StudyError as error:
            # The fetched files go with this call: those that they were made from are what can be mended.
            if error.file is not None and Path(error.file).is_relative_to(fetched):
                place = getattr(entry.source, "path", None) or getattr(entry.source, "repo", entry.id)
                error.file = Path(place, Path(error.file).relative_to(fetched))
            raise


def load(path: str | os.PathLike[str]) -> Recording:
    """The recording in a folder.

    Raises:
        StudyError: If there is none.
    """
    directory = Path(path).expanduser()
    if not (directory / RUN).is_file():
        inside = directory / "outliers"
        raise StudyError(
            "There is no recording in this folder.",
            file=directory,
            expected=f"{RUN} and its tables",
            got="no such folder" if not directory.exists() else "a file" if directory.is_file() else f"no {RUN}",
            remedy=f"Load {inside}." if (inside / RUN).is_file() else "Name the folder that `save` or the study wrote.",
        )
    return Recording(directory)


def compare(
    recordings: Sequence[Recording] | Mapping[str, Recording], *, presets: Sequence[str] | None = None
) -> pl.DataFrame:
    """Models side by side, `schemas.ModelComparison`: a row for each model, definition, and first token in or out.

    Models that were not recorded on the tokens of most are left out, with a warning.

    Args:
        recordings: The recordings, or the recordings by the names that their models shall have.
        presets: The definitions; by default all that every recording can be asked.

    Raises:
        StudyError: If there is no recording, two have one name, or a definition cannot be asked of one.
    """
    from outlier_moe.statistics.comparison import ComparedModel, compare_models

    named = _named(recordings)
    chosen = _common_presets(named.values()) if presets is None else [preset_named(preset) for preset in presets]
    compared = [
        ComparedModel({"model": name}, each.tables, systematic_features(each.tables, chosen).filter("is_systematic"))
        for name, each in named.items()
    ]
    return compare_models(compared, chosen).models


def _named(recordings: Sequence[Recording] | Mapping[str, Recording]) -> dict[str, Recording]:
    pairs = list(recordings.items() if isinstance(recordings, Mapping) else ((each.model, each) for each in recordings))
    named = dict(pairs)
    if len(named) < len(pairs) or not pairs:
        raise StudyError(
            "Recordings cannot be told apart." if pairs else "There is nothing to compare.",
            key="recordings",
            expected="recordings of models with names of their own",
            got=", ".join(name for name, _ in pairs) or "none",
            remedy="Give names: compare({'before': a, 'after': b})." if pairs else "Give a list of recordings.",
        )
    return named


def _common_presets(recordings: Iterable[Recording]) -> list[Preset]:
    """The definitions that can be asked of all recordings."""
    tables = [each.tables for each in recordings]
    return [preset for preset in PRESETS.values() if all(unanswered(each, [preset]) is None for each in tables)]


def _recorded(out: str | os.PathLike[str] | None, write: Callable[[Path], None]) -> Recording:
    """The recording that is written to a folder, or to a temporary one."""
    if out is not None:
        output = _vacant(out, key="out")
        write(output)
        return Recording(output)
    scratch = Path(tempfile.mkdtemp(prefix="outlier-moe-recording-"))
    try:
        write(scratch / "outliers")
        return Recording(scratch / "outliers", is_temporary=True)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _vacant(path: str | os.PathLike[str], *, key: str) -> Path:
    """A folder that is not there yet, or empty.

    Raises:
        StudyError: If something is there.
    """
    target = Path(path).expanduser()
    is_recording = (target / RUN).is_file()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise StudyError(
            "There is a recording already." if is_recording else "There is something else in this place.",
            file=target,
            key=key,
            expected="a folder that is not there yet, or empty",
            got="a recording" if is_recording else "a file" if target.is_file() else "a folder with files",
            remedy="Take another folder, or remove this one." if is_recording else "Take another folder.",
        )
    return target
