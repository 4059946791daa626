"""A small study that is killed at random moments, run again, and compared table by table with an undisturbed one.

`python tests/faults/kill_study.py --kills 20` takes about half an hour on two cores. Each study is killed a few times,
in one of five ways, and then run to its end. It passes if all tables are those of the undisturbed run, every recording
that was whole before a kill is still the same files, and nothing was done by hand but what a message named.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import psutil

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.workflow.study_folder import make_study  # noqa: E402

MODELS = {"tiny.llama": "llama", "tiny-mixtral": "mixtral"}
TARGETS = [f"results/{model}/systematic.parquet" for model in MODELS]
TOKENS = [f"results/{model}/tokens.arrow" for model in MODELS]
VARIANTS = {
    "resident": "record_outliers={mode: resident}",
    "streamed": "record_outliers={mode: streamed}",
    "resident, in shards": "record_outliers={mode: resident, shards: 2}",
}
KILLS_PER_STUDY = 4
LATEST = 0.4
"""Of the time of an undisturbed study, the latest moment of a kill: four of them come before its end."""
LONGEST_S = 600
# What Snakemake says where a run before it was killed, and what it names as the way out.
LOCKED, UNLOCK = "Directory cannot be locked", "--unlock"


@dataclass
class Run:
    """One run of Snakemake, in a process group of its own."""

    folder: Path
    arguments: Sequence[str]
    process: subprocess.Popen[bytes] = field(init=False)
    said: Path = field(init=False)

    def __post_init__(self) -> None:
        self.said = self.folder / "said.txt"
        command = [sys.executable, "-m", "snakemake", "--cores", "2", *self.arguments]
        with self.said.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self, seconds: float = LONGEST_S) -> int | None:
        """The exit status; None if it still runs."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def scripts(self) -> list[psutil.Process]:
        """The processes of its jobs' scripts."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any(".snakemake/scripts" in word for word in child.cmdline()[:3]):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def end_group(self) -> None:
        """End what is left of it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def kill_snakemake(run: Run) -> None:
    """SIGKILL to Snakemake alone: its jobs go on."""
    run.process.kill()


def kill_job(run: Run) -> None:
    """SIGKILL to a job alone, as when memory runs out."""
    while run.wait(0.05) is None:
        if scripts := run.scripts():
            scripts[0].kill()
            return


def kill_group(run: Run) -> None:
    """SIGKILL to all of it, as when a machine goes down."""
    run.end_group()


def interrupt_group(run: Run) -> None:
    """Ctrl-C in a terminal."""
    os.killpg(run.process.pid, signal.SIGINT)


def terminate(run: Run) -> None:
    """SIGTERM to Snakemake, as a scheduler sends it."""
    run.process.terminate()


KINDS: dict[str, Callable[[Run], None]] = {
    "SIGKILL to snakemake": kill_snakemake,
    "SIGKILL to a job": kill_job,
    "SIGKILL to all": kill_group,
    "SIGINT to all": interrupt_group,
    "SIGTERM to snakemake": terminate,
}


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Every table of a study's results."""
    paths = [path for path in sorted((folder / "results").rglob("*")) if path.suffix in (".arrow", ".parquet")]
    visible = [
        path for path in paths if not any(part[0] == "." or part == "recordings" for part in relative(path, folder))
    ]
    read = {
        path: pl.read_ipc(path.read_bytes()) if path.suffix == ".arrow" else pl.read_parquet(path) for path in visible
    }
    return {str(path.relative_to(folder)): table for path, table in read.items()}


def relative(path: Path, folder: Path) -> tuple[str, ...]:
    """The parts of a path below a folder."""
    return path.relative_to(folder).parts


def differences(ours: dict[str, pl.DataFrame], theirs: dict[str, pl.DataFrame]) -> list[str]:
    """What is missing, too much, or another table."""
    odd = sorted(ours.keys() ^ theirs.keys())
    return odd + [name for name in ours.keys() & theirs.keys() if not ours[name].equals(theirs[name])]


def whole_recordings(folder: Path) -> dict[str, int]:
    """The recordings of all sequences that are kept, and which file each one's table is."""
    found = (path.parent / "any_layer.arrow" for path in (folder / "results").glob("*/recordings/*/run.json"))
    return {str(path.relative_to(folder)): path.stat().st_ino for path in found if '"shard"' not in _run_of(path)}


def _run_of(path: Path) -> str:
    return (path.parent / "run.json").read_text()


@dataclass
class KilledStudy:
    """One study that is killed and run again."""

    folder: Path
    arguments: Sequence[str]
    left: list[Run] = field(default_factory=list)
    manual: list[str] = field(default_factory=list)

    def start(self) -> Run:
        """Start it, and unlock it first if the run before said so."""
        run = Run(self.folder, self.arguments)
        self.left.append(run)
        deadline = time.monotonic() + 60
        while run.wait(0.2) is None and time.monotonic() < deadline:
            if b"Job stats" in (said := run.said.read_bytes()) or b"Nothing to be done" in said:
                return run
        if run.process.returncode in (None, 0):
            return run
        text = run.said.read_text(errors="replace")
        if LOCKED not in text or UNLOCK not in text:
            return run
        self.manual.append("snakemake --unlock, which the message names")
        subprocess.run(
            [sys.executable, "-m", "snakemake", "--unlock"], cwd=self.folder, check=True, capture_output=True
        )
        return self.start()

    def finish(self) -> list[str]:
        """Run it to its end; what it says if it does not come there."""
        for _ in range(3):
            run = self.start()
            if run.wait() == 0:
                return []
        return self.left[-1].said.read_text(errors="replace").splitlines()[-12:]

    def end(self) -> None:
        """End what runs yet."""
        for run in self.left:
            run.end_group()


def killed_and_finished(
    study: KilledStudy,
    kinds: Sequence[str],
    expected: dict[str, pl.DataFrame] | None,
    longest_s: float,
    moments: random.Random,
) -> tuple[list[str], list[str]]:
    """Kill a study in each of some ways, then run it to its end.

    Returns:
        A line for each kill, and what is wrong at the end.
    """
    lines, wrong = [], []
    for kind in kinds:
        run = study.start()
        moment = moments.uniform(0, longest_s)
        if run.wait(moment) is not None:
            # Not counted: the next study is killed in its place.
            lines.append(f"{kind}: had ended before {moment:.1f} s")
            break
        before = whole_recordings(study.folder)
        running = [script.cmdline()[-1].rsplit(".", 2)[-2] for script in run.scripts()]
        KINDS[kind](run)
        if kind != "SIGKILL to snakemake":
            run.wait(60)
        said = run.said.read_text(errors="replace")
        lines.append(f"{kind} after {moment:.1f} s, in {', '.join(running) or 'between jobs'}")
        if "Traceback" in said:
            wrong.append(f"{kind}: a traceback")
        after = whole_recordings(study.folder)
        wrong += [f"{kind}: lost {name}" for name in before if after.get(name) != before[name]]
    kept = whole_recordings(study.folder)
    wrong += study.finish()
    if expected is not None:
        wrong += [f"other than undisturbed: {name}" for name in differences(tables(study.folder), expected)]
    again = whole_recordings(study.folder)
    return lines, wrong + [f"recorded twice: {name}" for name in kept if again.get(name) != kept[name]]


def prepared(folder: Path) -> Path:
    """A study with its models, before anything ran."""
    make_study(folder, MODELS, tokenize_corpus={"n_sequences": 6, "sequence_length": 32})
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, run again, compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the undisturbed studies here, and use those that are there")
    options = parser.parse_args(arguments)
    moments, n_killed, n_wrong, number = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory(prefix="killed-") as scratch:
        kept = options.folder or Path(scratch)
        fresh, tokenized = kept / "fresh", kept / "tokenized"
        if not fresh.exists():
            prepared(fresh)
            shutil.copytree(fresh, tokenized)
            assert KilledStudy(tokenized, TOKENS).finish() == []
        expected, longest_s = {}, {}
        for variant in ("resident", "streamed"):
            undisturbed = KilledStudy(kept / variant, _asked(variant))
            if not undisturbed.folder.exists():
                shutil.copytree(tokenized, undisturbed.folder)
                started = time.monotonic()
                assert undisturbed.finish() == []
                (undisturbed.folder / "took_s").write_text(str(time.monotonic() - started))
            longest_s[variant], expected[variant] = _seconds(undisturbed.folder), tables(undisturbed.folder)
            print(f"undisturbed, {variant}: {longest_s[variant]:.0f} s, {len(expected[variant])} tables", flush=True)
        while n_killed < options.kills:
            variant = list(VARIANTS)[number % len(VARIANTS)]
            like = variant.split(",")[0]
            # Every third from its very beginning; the others from where recording does.
            start = fresh if number % 3 == 2 else tokenized
            folder = Path(shutil.copytree(start, Path(scratch) / f"killed-{number}"))
            study = KilledStudy(folder, _asked(variant))
            n_kinds = min(KILLS_PER_STUDY, options.kills - n_killed)
            kinds = [list(KINDS)[(n_killed + offset) % len(KINDS)] for offset in range(n_kinds)]
            try:
                lines, wrong = killed_and_finished(study, kinds, expected[like], longest_s[like] * LATEST, moments)
            finally:
                study.end()
            n_killed += sum("had ended" not in line for line in lines)
            n_wrong += len(wrong)
            print(f"study {number} ({variant})", *(f"  {line}" for line in lines), sep="\n")
            print(f"  by hand: {'; '.join(study.manual) or 'nothing'}")
            print(
                *(f"  WRONG: {line}" for line in wrong or []), *([] if wrong else ["  all tables identical"]), sep="\n"
            )
            sys.stdout.flush()
            shutil.rmtree(folder, ignore_errors=True)
            number += 1
    print(f"{n_killed} kills, {n_wrong} wrong")
    return 1 if n_wrong else 0


def _seconds(folder: Path) -> float:
    return float((folder / "took_s").read_text())


def _asked(variant: str) -> list[str]:
    return [*TARGETS, "--config", VARIANTS[variant]]


if __name__ == "__main__":
    raise SystemExit(main())
