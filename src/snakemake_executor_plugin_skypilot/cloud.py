"""All that is asked of SkyPilot: rent a node, run a job on it, follow its output, bring files, end it.

A job's output is one blocking stream (`tail_logs`), whose end tells how the job ended: a question for the status takes
SkyPilot as long as starting a process does. Whether a node is lost is found out by ssh: SkyPilot says that a node is up
for minutes after it was taken away.
"""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from snakemake_executor_plugin_skypilot.errors import CancelledError, NoCapacityError, NodeLostError, told
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode

if TYPE_CHECKING:
    import sky  # pyright: ignore[reportMissingImports]

# Where SkyPilot puts the files of a task on a node.
WORKDIR = "~/sky_workdir"
# A connection that breaks is tried again for so long before its node is lost.
PATIENCE_S = 60
PROBE_TIMEOUT_S = 10
PROBE_EVERY_S = 5


class Files(NamedTuple):
    """Paths in the workflow's folder that are on a node."""

    directories: tuple[str, ...]
    """Those that are folders."""
    files: tuple[str, ...]
    """Those that are not."""


class Submitted(NamedTuple):
    """A job in the queue of a node."""

    job_id: int
    """Its number there."""
    node: str
    """What the node is, for people."""
    price_per_hour: float
    """Dollars."""


class NodeTask(NamedTuple):
    """What a node does: its set-up once, and a job."""

    name: str
    """The job's name in SkyPilot's queue."""
    folder: Path
    """What is sent."""
    setup: str
    """Shell commands that make the node ready."""
    run: str
    """Shell commands of the job."""
    secrets: dict[str, str]
    """Environment variables that no log shows."""
    wanted: WantedNode
    """The node."""


def import_sky() -> Any:
    """SkyPilot.

    Raises:
        WorkflowError: If it is not installed.
    """
    try:
        import sky  # pyright: ignore[reportMissingImports]
        import sky.client.sdk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        remedy = 'pip install "snakemake-executor-plugin-skypilot[runpod]", in an environment with click below 8.2.'
        raise told("The executor skypilot wants SkyPilot.", got=f"{error}", remedy=remedy) from None
    return sky


class Cloud:
    """SkyPilot, for the nodes of one run."""

    def __init__(self, infra: str, *, image: str | None, max_price_per_hour: float | None, idle_minutes: int | None):
        self._sky = import_sky()
        self._infra = infra
        self._image = image
        self._max_price_per_hour = max_price_per_hour
        self._idle_minutes = idle_minutes
        self._runners: dict[str, Any] = {}
        self._launching: dict[str, str] = {}
        self._cancelled = threading.Event()

    def launch(self, task: NodeTask, node: str, log: TextIOBase) -> Submitted:
        """Rent a node, make it ready and start a job on it.

        Raises:
            NoCapacityError: If no place has such a node now.
            NodeLostError: If it was lost on the way.
            CancelledError: If the run was ended meanwhile.
            WorkflowError: If it is refused for a reason that will not pass.
        """
        sky = self._sky
        self._refuse_cancelled()
        down = self._idle_minutes is not None
        request = sky.launch(
            self._task(task), cluster_name=node, idle_minutes_to_autostop=self._idle_minutes, down=down
        )
        return self._submitted(request, node, log)

    def start(self, task: NodeTask, node: str, log: TextIOBase) -> Submitted:
        """Start a job on a node that is there and ready; raises as `launch` does."""
        self._refuse_cancelled()
        return self._submitted(self._sky.exec(self._task(task), cluster_name=node), node, log)

    def _task(self, wanted: NodeTask) -> sky.Task:
        sky = self._sky
        task = sky.Task(
            name=wanted.name,
            workdir=str(wanted.folder),
            setup=wanted.setup or None,
            run=wanted.run,
            secrets=wanted.secrets or None,
        )
        node = wanted.wanted
        shared = {
            "infra": self._infra,
            "use_spot": node.spot,
            "disk_size": node.disk_gb,
            "image_id": self._image,
            "max_hourly_cost": self._max_price_per_hour,
        }
        if node.accelerators:
            choices = [sky.Resources(accelerators={name: count}, **shared) for name, count in node.accelerators]
        else:
            choices = [sky.Resources(cpus=f"{node.cpus}+", **shared)]
        # A set: SkyPilot takes the cheapest that is to be had.
        task.set_resources(set(choices))
        return task

    def _submitted(self, request: Any, node: str, log: TextIOBase) -> Submitted:
        exceptions = self._sky.exceptions
        self._launching[node] = request
        try:
            if self._cancelled.is_set():
                self._sky.get(self._sky.api_cancel([request], silent=True))
                raise CancelledError
            job_id, handle = self._sky.stream_and_get(request, output_stream=log)
        except exceptions.RequestCancelled:
            raise CancelledError from None
        except exceptions.ResourcesUnavailableError as error:
            raise NoCapacityError(_first_line(error)) from error
        except (exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError) as error:
            raise NodeLostError(_first_line(error)) from error
        except exceptions.CommandError as error:
            # Of rsync or ssh: it is the node's fault if the node is gone, else that of what was sent.
            self._refuse_cancelled()
            if not self._answers(node):
                raise NodeLostError(_first_line(error)) from error
            raise told("A node could not be made ready.", got=str(error), remedy=f"See {_name(log)}") from error
        finally:
            self._launching.pop(node, None)
        self._refuse_cancelled()
        self._runners[node] = handle.get_command_runners()[0]
        resources = handle.launched_resources
        place = "/".join(filter(None, [str(resources.cloud), resources.region, resources.zone]))
        what = f"{resources.instance_type} in {place}{', spot' if resources.use_spot else ''}"
        return Submitted(job_id, what, resources.get_cost(3600))

    def follow(self, node: str, job_id: int, log: TextIOBase) -> bool:
        """Stream a job's output until it ends; whether it succeeded.

        Raises:
            NodeLostError: If the node is gone or has not answered for a minute.
            CancelledError: If the job or the run was ended by somebody.
        """
        codes = self._sky.exceptions.JobExitCode
        while True:
            code = self._stream(node, job_id, log)
            self._refuse_cancelled()
            if code == codes.SUCCEEDED:
                return True
            if code == codes.CANCELLED:
                raise CancelledError
            if not self._answers(node):
                raise NodeLostError("it does not answer")
            if code == codes.FAILED:
                return False
            if code == codes.NOT_FOUND:
                raise NodeLostError("it does not know its job any more")
            log.write("(connection lost and found again; what follows repeats the output from its beginning)\n")

    def _stream(self, node: str, job_id: int, log: TextIOBase) -> int | None:
        """The exit code that SkyPilot gives a job; None if the stream broke."""
        try:
            return self._sky.tail_logs(node, job_id, follow=True, output_stream=log)
        except Exception as error:  # Whatever broke it, what counts is whether the node answers.
            log.write(f"(connection lost: {_first_line(error)})\n")
            return None

    def _answers(self, node: str) -> bool:
        """Whether a node answers by ssh, within a minute."""
        runner = self._runners.get(node) or self._find_runner(node)
        if runner is None:
            return False
        deadline = time.monotonic() + PATIENCE_S
        while not self._cancelled.is_set():
            if runner.run("true", stream_logs=False, connect_timeout=PROBE_TIMEOUT_S) == 0:
                return True
            if time.monotonic() > deadline:
                return False
            self._cancelled.wait(PROBE_EVERY_S)
        raise CancelledError

    def _find_runner(self, node: str) -> Any:
        """What runs commands on a node whose launch did not come to an end; None if there is none."""
        records = self._sky.get(self._sky.status([node]))
        handle = records[0]["handle"] if records else None
        try:
            return handle.get_command_runners()[0] if handle is not None else None
        except Exception:  # A handle without an address.
            return None

    def present(self, node: str, paths: Iterable[str]) -> Files:
        """Which of some paths a node has.

        Raises:
            NodeLostError: If it does not answer.
        """
        quoted = " ".join(map(shlex.quote, paths))
        if not quoted:
            return Files((), ())
        script = f"cd {WORKDIR} && for path in {quoted}; do "
        script += 'if [ -d "$path" ]; then echo "d$path"; elif [ -e "$path" ]; then echo "f$path"; fi; done'
        runner = self._runners[node]
        while True:
            code, output, _ = runner.run(script, require_outputs=True, stream_logs=False)
            if code == 0:
                lines = output.splitlines()
                return Files(*(tuple(line[1:] for line in lines if line[:1] == kind) for kind in "df"))
            if not self._answers(node):
                raise NodeLostError("it does not answer")

    def bring(self, node: str, found: Files, into: Path) -> None:
        """Copy files and folders of a node; each takes its place when it is whole.

        Args:
            node: The node.
            found: Their paths in the workflow's folder.
            into: That folder here.

        Raises:
            NodeLostError: If the node was lost.
            CommandError: If a path cannot be copied although the node answers (a full disk here, say).
        """
        for path in (*found.directories, *found.files):
            place = into / path
            partial = place.with_name(f".{place.name}.fetched")
            is_directory = path in found.directories
            _remove(partial)
            (partial if is_directory else partial.parent).mkdir(parents=True, exist_ok=True)
            self._copy(node, f"{WORKDIR}/{path}{'/' if is_directory else ''}", partial)
            _remove(place)
            partial.rename(place)
            # A node's clock is not this machine's: an output older than its input would be made again.
            os.utime(place)
            if (timestamp := place / ".snakemake_timestamp").is_file():
                os.utime(timestamp)

    def _copy(self, node: str, source: str, target: Path) -> None:
        for last in (False, False, True):
            try:
                return self._runners[node].rsync(source, str(target), up=False, stream_logs=False)
            except self._sky.exceptions.CommandError as error:
                self._refuse_cancelled()
                if not self._answers(node):
                    raise NodeLostError(_first_line(error)) from error
                if last:
                    raise

    def end(self, node: str) -> None:
        """End a node, or what there is of it; nothing if it is gone.

        Raises:
            Exception: What SkyPilot raises, if it cannot be ended after three tries.
        """
        exceptions = self._sky.exceptions
        for last in (False, False, True):
            try:
                self._sky.get(self._sky.down(node))
                break
            except (exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError):
                break
            except Exception:
                if last:
                    raise
                time.sleep(2)
        self._runners.pop(node, None)

    def cancel(self) -> None:
        """Make every call that is waiting give up, and stop what is being rented."""
        self._cancelled.set()
        requests = list(self._launching.values())
        if requests:
            self._sky.get(self._sky.api_cancel(requests, silent=True))

    def nodes(self, refresh: bool = False) -> Sequence[Any]:
        """What SkyPilot says of all nodes, in one request."""
        mode = self._sky.StatusRefreshMode
        return self._sky.get(self._sky.status(refresh=mode.FORCE if refresh else mode.NONE))

    def _refuse_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _name(log: TextIOBase) -> str:
    return str(getattr(log, "name", "its log"))
