"""Logging of a stage: details to its log file, warnings and errors to the terminal too."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from outlier_moe.errors import StudyError
from outlier_moe.machine.disk_trouble import disk_trouble
from outlier_moe.machine.stages import ScriptJob, Stage, StageDoneError, alone
from outlier_moe.machine.start_up import INTERRUPTED, ended_by

log = logging.getLogger("outlier_moe")


@contextmanager
def reporting_to(path: str | Path, job: ScriptJob | None = None) -> Iterator[None]:
    """Log to a file while a stage runs; a mistake of the user's ends the process with its message alone.

    So do a disk that is full or closed, and Ctrl-C.

    Args:
        path: The log file; its folder is made.
        job: The job of the stage, which then is alone at its outputs: see `stages`.
    """
    path = Path(path)
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.handlers[:] = [to_terminal]
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        # The bars of the libraries are for a terminal; in a file each step of theirs is one more line.
        os.environ.setdefault("TQDM_DISABLE", "1")
    stage = None if job is None else Stage.of(job, path)
    with ExitStack() as stack:
        stack.callback(root.removeHandler, to_terminal)
        stack.enter_context(_ended_in_a_line(path if stage is None else stage.outputs[0]))
        stack.enter_context(_terminated_as_interrupted())
        path.parent.mkdir(parents=True, exist_ok=True)
        if stage is not None:
            stack.enter_context(alone(stage))
        # Only now: a process that still runs may be writing there.
        to_file = logging.FileHandler(path, mode="w", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(to_file)
        stack.callback(to_file.close)
        stack.callback(root.removeHandler, to_file)
        # Within the file's life, so that it has what ended the stage.
        stack.enter_context(_ended_in_a_line(path if stage is None else stage.outputs[0]))
        yield


@contextmanager
def _ended_in_a_line(place: Path) -> Iterator[None]:
    """End the process with an error in a few lines if the user can mend it."""
    try:
        yield
    except StageDoneError:
        raise SystemExit(0) from None
    except StudyError as error:
        log.error("%s", error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        log.error("%s: interrupted; what is finished is kept, and the next run goes on from there", place)
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if (told := disk_trouble(error, place)) is not None:
            log.error("%s", told)
        else:
            log.exception("the stage failed")
        raise SystemExit(1) from None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Once: a second signal must not cut off what is tidied up after the first.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    with ended_by(interrupt):
        yield
