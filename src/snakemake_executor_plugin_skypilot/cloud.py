"""All that is asked of SkyPilot: rent a node, run a job on it, follow its output, bring files, end it.

A job's output is one blocking stream (`tail_logs`), whose end tells how the job ended: a question for the status takes
SkyPilot as long as starting a process does. Whether a node is lost is found out by ssh: SkyPilot says that a node is up
for minutes after it was taken away.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from snakemake_executor_plugin_skypilot.arriving import Address, copy_from, put_in_place
from snakemake_executor_plugin_skypilot.errors import CancelledError, NoCapacityError, NodeLostError, told
from snakemake_executor_plugin_skypilot.masked_log import CONTROL
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode
from snakemake_executor_plugin_skypilot.repeated import repeated

if TYPE_CHECKING:
    import sky  # pyright: ignore[reportMissingImports]

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
    """SkyPilot, for the nodes of one run.

    Args:
        infra: Where nodes are rented, as SkyPilot writes it.
        image: Their image; that of the cloud if None.
        keep_running: Whether nodes do not end themselves when idle.
        launch_minutes: How long a node may take until it is ready.
        scratch: A folder here for files that are on their way.
    """

    def __init__(
        self,
        infra: str,
        *,
        image: str | None,
        keep_running: bool,
        launch_minutes: float,
        scratch: Path,
    ) -> None:
        self._sky = import_sky()
        self._scratch = scratch
        self._launch_minutes = launch_minutes
        self._infra = infra
        self._image = image
        self._keep_running = keep_running
        self._idle_minutes: dict[str, int] = {}
        self._runners: dict[str, Any] = {}
        self._launching: dict[str, str] = {}
        self._cancelled = threading.Event()

    def launch(self, task: NodeTask, node: str, log: TextIOBase) -> Submitted:
        """Rent a node, make it ready and start a job on it.

        Raises:
            NoCapacityError: If none can be rented now.
            NodeLostError: If it was lost on the way.
            CancelledError: If the run was ended meanwhile.
            WorkflowError: If it is refused for a reason that will not pass.
        """
        sky = self._sky
        self._refuse_cancelled()
        idle_minutes = None if self._keep_running else task.wanted.idle_minutes
        if idle_minutes is not None:
            self._idle_minutes[node] = idle_minutes
        request = sky.launch(
            self._task(task), cluster_name=node, idle_minutes_to_autostop=idle_minutes, down=idle_minutes is not None
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
            "max_hourly_cost": node.max_price_per_hour,
        }
        if node.accelerators:
            choices = [sky.Resources(accelerators={name: count}, **shared) for name, count in node.accelerators]
        else:
            choices = [sky.Resources(cpus=f"{node.cpus}+", **shared)]
        # A set: SkyPilot takes the cheapest that is to be had.
        task.set_resources(set(choices))
        return task

    def _submitted(self, request: Any, node: str, log: TextIOBase) -> Submitted:
        exceptions, given_up = self._sky.exceptions, threading.Event()
        self._launching[node] = request
        try:
            if self._cancelled.is_set():
                self._sky.get(self._sky.api_cancel([request], silent=True))
                raise CancelledError
            with self._given_up_in_time(request, given_up):
                job_id, handle = self._sky.stream_and_get(request, output_stream=log)
        except exceptions.RequestCancelled:
            self._refuse_cancelled()
            if given_up.is_set():
                raise NodeLostError(f"it was not ready after {self._launch_minutes:g} minutes") from None
            raise CancelledError from None
        except (exceptions.ResourcesUnavailableError, exceptions.CloudError, OSError) as error:
            # Errors of the cloud's interface and of the way to it are among them: they may pass as well.
            self._refuse_cancelled()
            raise NoCapacityError(_first_line(error)) from error
        except _lost_on_the_way(exceptions) as error:
            self._refuse_cancelled()
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

    @contextmanager
    def _given_up_in_time(self, request: Any, given_up: threading.Event) -> Iterator[None]:
        """Cancel a request that takes too long: SkyPilot waits without end for a pod that vanished while it booted."""

        def give_up() -> None:
            given_up.set()
            self._sky.get(self._sky.api_cancel([request], silent=True))

        timer = threading.Timer(self._launch_minutes * 60, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def follow(self, node: str, job_id: int, log: TextIOBase, *, may_vanish: bool) -> bool:
        """Stream a job's output until it ends; whether it succeeded.

        Args:
            node: The node.
            job_id: The job's number there.
            log: Where the output goes.
            may_vanish: Whether the node may be taken away: then what fails may have failed by that.

        Raises:
            NodeLostError: If the node is gone or has not answered for a minute.
            CancelledError: If the job or the run was ended by somebody.
            WorkflowError: If the node answers, but its output cannot be had.
        """
        codes = self._sky.exceptions.JobExitCode
        n_broken = 0
        while n_broken < MOST_BROKEN_STREAMS:
            started = time.monotonic()
            code = self._stream(node, job_id, log)
            self._refuse_cancelled()
            if code == codes.SUCCEEDED:
                return True
            if code == codes.FAILED and may_vanish and self._cancelled.wait(LAST_SECONDS):
                raise CancelledError
            if not self._answers(node):
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
        raise told("A node answers, but SkyPilot cannot follow its job.", got=node, remedy=f"See {_name(log)}")

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

    def bring(self, node: str, paths: Sequence[str], into: Path) -> None:
        """Copy files and folders of a node, those that it has; each takes its place when it is whole.

        Args:
            node: The node.
            paths: Their paths in the workflow's folder.
            into: That folder here.

        Raises:
            NodeLostError: If the node was lost.
            WorkflowError: If they cannot be copied although the node answers (a full disk here, say).
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{node}-", dir=self._scratch) as folder, self._kept_awake(node):
            self._copy(node, paths, Path(folder))
            put_in_place(Path(folder), paths, into)

    def _copy(self, node: str, paths: Sequence[str], into: Path) -> None:
        runner = self._runners[node]
        mode = self._sky.utils.command_runner.SshMode.NON_INTERACTIVE
        *ssh, host = runner.ssh_base_command(ssh_mode=mode, port_forward=None, connect_timeout=PATIENCE_S)
        problem = None
        for _ in range(TRIES):
            problem = copy_from(Address(ssh, host), WORKDIR, paths, into, self._cancelled)
            if problem is None:
                return
            self._refuse_cancelled()
            if not self._answers(node):
                raise NodeLostError(problem.splitlines()[-1])
        raise told("Files could not be copied from a node.", got=problem)

    def _kept_awake(self, node: str) -> AbstractContextManager[None]:
        """Keeps a node that has no job any more from ending itself as idle while files are copied from it."""
        idle_minutes = self._idle_minutes.get(node)
        if idle_minutes is None:
            return nullcontext()
        python = self._sky.skylet.constants.SKY_PYTHON_CMD
        command = f"{python} -c 'from sky.skylet import autostop_lib; autostop_lib.set_last_active_time_to_now()'"
        return repeated(idle_minutes * 60 / 3, lambda: self._runners[node].run(command, stream_logs=False))

    def end(self, node: str) -> None:
        """End a node, or what there is of it; nothing if it is gone.

        Raises:
            Exception: What SkyPilot raises, if it cannot be ended after four tries.
        """
        exceptions = self._sky.exceptions
        for wait_s in (2, 10, 30, None):
            try:
                self._sky.get(self._sky.down(node))
                break
            except (exceptions.ClusterDoesNotExist, exceptions.ClusterNotUpError):
                break
            except Exception:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
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


def _lost_on_the_way(exceptions: Any) -> tuple[type[Exception], ...]:
    """What SkyPilot raises where a node, or its own server, went away: the same may go well another time."""
    return (
        exceptions.ClusterDoesNotExist,
        exceptions.ClusterNotUpError,
        exceptions.ClusterStatusFetchingError,
        exceptions.FetchClusterInfoError,
        exceptions.NetworkError,
        exceptions.RequestInterruptedError,
        exceptions.ServerTemporarilyUnavailableError,
    )


def _first_line(error: Exception) -> str:
    said = CONTROL.sub("", str(error)).strip()
    return f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"


def _name(log: TextIOBase) -> str:
    return str(getattr(log, "name", "its log"))
