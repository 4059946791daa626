"""A node that is up: what its jobs say, whether it answers, and the files that come from it.

A job's output is one blocking stream (`tail_logs`), whose end tells how the job ended: a question for the status takes
SkyPilot as long as starting a process does. Whether a node is lost is found out by ssh: SkyPilot says that a node is up
for minutes after it was taken away.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from io import TextIOBase
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_skypilot.arriving import Address, copy_from, put_in_place
from snakemake_executor_plugin_skypilot.errors import CancelledError, NodeLostError, first_line, rental_error
from snakemake_executor_plugin_skypilot.repeated import repeated

# Where SkyPilot puts the files of a task, in the home of a node's user.
WORKDIR = "sky_workdir"
# A connection that breaks is tried again for so long before its node is lost.
PATIENCE_S = 60
PROBE_TIMEOUT_S = 10
PROBE_EVERY_S = 5
# A node that may be taken away ends its processes some seconds before it is gone.
LAST_SECONDS = 10
TRIES = 3
# So many streams, one after the other, that break sooner than that: it is not the network.
MOST_BROKEN_STREAMS, STEADY_S = 20, 60


class RunningNode:
    """A node that has an address.

    Args:
        sky: SkyPilot.
        name: The node's name.
        runner: SkyPilot's runner of commands on it.
        idle_minutes: After how many minutes without a job it ends itself; None: never.
        cancelled: Set when the run is ended: makes every call that is waiting give up.
    """

    def __init__(
        self, sky: Any, name: str, runner: Any, *, idle_minutes: int | None, cancelled: threading.Event
    ) -> None:
        self._sky = sky
        self._name = name
        self._runner = runner
        self._idle_minutes = idle_minutes
        self._cancelled = cancelled

    def follow(self, job_id: int, log: TextIOBase, *, may_vanish: bool) -> bool:
        """Stream a job's output until it ends; whether it succeeded.

        Args:
            job_id: The job's number there.
            log: Where the output goes.
            may_vanish: Whether the node may be taken away: then what fails may have failed by that.

        Raises:
            NodeLostError: If the node is gone or has not answered for a minute.
            CancelledError: If the job or the run was ended by somebody.
            RentalError: If the node answers, but its output cannot be had.
        """
        codes = self._sky.exceptions.JobExitCode
        n_broken = 0
        while n_broken < MOST_BROKEN_STREAMS:
            started = time.monotonic()
            code = self._stream(job_id, log)
            self._refuse_cancelled()
            if code == codes.SUCCEEDED:
                return True
            if code == codes.FAILED and may_vanish and self._cancelled.wait(LAST_SECONDS):
                raise CancelledError
            if not self.answers():
                raise NodeLostError("it does not answer")
            if code == codes.FAILED:
                return False
            if code == codes.CANCELLED:
                raise CancelledError
            if code == codes.NOT_FOUND:
                raise NodeLostError("it does not know its job any more")
            n_broken = n_broken + 1 if time.monotonic() - started < STEADY_S else 1
            self._cancelled.wait(PROBE_EVERY_S)
            log.write("(connection lost and found again; what follows repeats the output from its beginning)\n")
        raise rental_error(
            "A node answers, but SkyPilot cannot follow its job.", got=self._name, remedy=f"See {log_name(log)}"
        )

    def _stream(self, job_id: int, log: TextIOBase) -> int | None:
        """The exit code that SkyPilot gives a job; None if the stream broke."""
        try:
            return self._sky.tail_logs(self._name, job_id, follow=True, output_stream=log)
        except Exception as error:  # Whatever broke it, what counts is whether the node answers.
            log.write(f"(connection lost: {first_line(error)})\n")
            return None

    def answers(self) -> bool:
        """Whether it answers by ssh, within a minute.

        Raises:
            CancelledError: If the run was ended meanwhile.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not self._cancelled.is_set():
            if self._runner.run("true", stream_logs=False, connect_timeout=PROBE_TIMEOUT_S) == 0:
                return True
            if time.monotonic() > deadline:
                return False
            self._cancelled.wait(PROBE_EVERY_S)
        raise CancelledError

    def bring(self, paths: Sequence[str], into: Path, *, scratch: Path) -> None:
        """Copy its files and folders, those that it has; each takes its place when it is whole.

        Args:
            paths: Their paths in the workflow's folder.
            into: That folder here.
            scratch: A folder here for files that are on their way.

        Raises:
            NodeLostError: If the node was lost.
            RentalError: If they cannot be copied although the node answers (a full disk here, say).
        """
        scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{self._name}-", dir=scratch) as folder, self.kept_awake():
            self._copy(paths, Path(folder))
            put_in_place(Path(folder), paths, into)

    def _copy(self, paths: Sequence[str], into: Path) -> None:
        mode = self._sky.utils.command_runner.SshMode.NON_INTERACTIVE
        *ssh, host = self._runner.ssh_base_command(ssh_mode=mode, port_forward=None, connect_timeout=PATIENCE_S)
        problem = None
        for _ in range(TRIES):
            problem = copy_from(Address(ssh, host), WORKDIR, paths, into, self._cancelled)
            if problem is None:
                return
            self._refuse_cancelled()
            if not self.answers():
                raise NodeLostError(problem.splitlines()[-1])
        raise rental_error("Files could not be copied from a node.", got=problem)

    def kept_awake(self) -> AbstractContextManager[None]:
        """Keeps a node that has no job from ending itself as idle while files are copied from it, or to it."""
        if self._idle_minutes is None:
            return nullcontext()
        python = self._sky.skylet.constants.SKY_PYTHON_CMD
        command = f"{python} -c 'from sky.skylet import autostop_lib; autostop_lib.set_last_active_time_to_now()'"
        return repeated(self._idle_minutes * 60 / 3, lambda: self._runner.run(command, stream_logs=False))

    def _refuse_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError


def log_name(log: TextIOBase) -> str:
    """Where a log is, for people."""
    return str(getattr(log, "name", "its log"))
