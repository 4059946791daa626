"""SkyPilot, for the nodes of one run: rent a node and start a job on it, end it, tell what there is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from snakemake_executor_plugin_skypilot.errors import (
    CancelledError,
    NoCapacityError,
    NodeLostError,
    first_line,
    rental_error,
)
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode
from snakemake_executor_plugin_skypilot.running_node import RunningNode, log_name
from snakemake_executor_plugin_skypilot.runpod_pods import end_pod, listed_pods

if TYPE_CHECKING:
    import sky  # pyright: ignore[reportMissingImports]

# A request for a node that was broken off may still be answered: SkyPilot's library for RunPod waits 30 s for that.
# What is ended before is not there yet, and unknown from then on.
LATE_ANSWER_S = 35
# What is sent may come as slowly as that and take its node's time without the node being given up.
SLOWEST_BYTES_PER_S = 1e6
# SkyPilot writes a job's script, its secrets with it, into ssh's command line unless that has more than 100 KiB.
_AS_A_FILE = "# Long, so that it goes as a file and not in a command line: " + "-" * 110_000


class Submitted(NamedTuple):
    """A job in the queue of a node."""

    job_id: int
    """Its number there."""
    what: str
    """What the node is, for people."""
    price_per_hour: float
    """Dollars."""
    node: RunningNode
    """The node."""


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
        RentalError: If it is not installed.
    """
    try:
        import sky  # pyright: ignore[reportMissingImports]
        import sky.client.sdk  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        remedy = 'pip install "snakemake-executor-plugin-skypilot[runpod]", in an environment with click below 8.2.'
        raise rental_error("The executor skypilot wants SkyPilot.", got=f"{error}", remedy=remedy) from None
    return sky


class Cloud:
    """SkyPilot, for the nodes of one run.

    Args:
        infra: Where nodes are rented, as SkyPilot writes it.
        image: Their image; that of the cloud if None.
        keep_running: Whether nodes do not end themselves when idle.
        launch_minutes: How long a node may take until it is ready.
    """

    def __init__(
        self,
        infra: str,
        *,
        image: str | None,
        keep_running: bool,
        launch_minutes: float,
    ) -> None:
        self._sky = import_sky()
        self._launch_minutes = launch_minutes
        self._infra = infra
        self._image = image
        self._keep_running = keep_running
        self._idle_minutes: dict[str, int] = {}
        self._launching: dict[str, str] = {}
        # Nodes whose launch has not come to a good end, and when all that was asked of the cloud is answered.
        self._asked_for: set[str] = set()
        self._answered_at: dict[str, float] = {}
        self._cancelled = threading.Event()

    def launch(self, task: NodeTask, node: str, log: TextIOBase) -> Submitted:
        """Rent a node, make it ready and start a job on it.

        Raises:
            NoCapacityError: If none can be rented now.
            NodeLostError: If it was lost on the way.
            CancelledError: If the run was ended meanwhile.
            RentalError: If it is refused for a reason that will not pass.
        """
        sky = self._sky
        self._refuse_cancelled()
        idle_minutes = None if self._keep_running else task.wanted.idle_minutes
        if idle_minutes is not None:
            self._idle_minutes[node] = idle_minutes
        self._asked_for.add(node)
        request = sky.launch(
            self._task(task), cluster_name=node, idle_minutes_to_autostop=idle_minutes, down=idle_minutes is not None
        )
        submitted = self._submitted(request, node, log, self._limit_s(task))
        self._asked_for.discard(node)
        return submitted

    def start(self, task: NodeTask, node: str, log: TextIOBase) -> Submitted:
        """Start a job on a node that is there and ready; raises as `launch` does."""
        self._refuse_cancelled()
        request = self._sky.exec(self._task(task), cluster_name=node)
        return self._submitted(request, node, log, self._limit_s(task))

    def _limit_s(self, task: NodeTask) -> float:
        """How long a node may take until a job of it is in its queue, what is sent included."""
        n_bytes = sum(path.stat().st_size for path in task.folder.rglob("*") if path.is_file())
        return self._launch_minutes * 60 + n_bytes / SLOWEST_BYTES_PER_S

    def _task(self, wanted: NodeTask) -> sky.Task:
        sky = self._sky
        task = sky.Task(
            name=wanted.name,
            workdir=str(wanted.folder),
            setup=wanted.setup or None,
            run=f"{wanted.run}\n{_AS_A_FILE}" if wanted.secrets else wanted.run,
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

    def _submitted(self, request: Any, node: str, log: TextIOBase, limit_s: float) -> Submitted:
        exceptions, given_up = self._sky.exceptions, threading.Event()
        self._launching[node] = request
        try:
            if self._cancelled.is_set():
                self._sky.get(self._sky.api_cancel([request], silent=True))
                raise CancelledError
            with self._given_up_in_time(request, given_up, limit_s):
                job_id, handle = self._sky.stream_and_get(request, output_stream=log)
        except exceptions.RequestCancelled:
            self._refuse_cancelled()
            if given_up.is_set():
                minutes = f"{limit_s / 60:.3g} minutes (launch-minutes, and time for what is sent)"
                raise NodeLostError(f"it was not ready after {minutes}") from None
            raise CancelledError from None
        except exceptions.ResourcesUnavailableError as error:
            self._refuse_cancelled()
            raise NoCapacityError(first_line(error)) from error
        except (exceptions.CloudError, OSError) as error:
            # Errors of the cloud's interface and of the way to it: they may pass as well.
            self._refuse_cancelled()
            raise NoCapacityError(first_line(error), was_rented=True) from error
        except _lost_on_the_way(exceptions) as error:
            self._refuse_cancelled()
            raise NodeLostError(first_line(error)) from error
        except exceptions.CommandError as error:
            # Of rsync or ssh: it is the node's fault if the node is gone, else that of what was sent.
            self._refuse_cancelled()
            if not self._answers(node):
                raise NodeLostError(first_line(error)) from error
            raise rental_error(
                "A node could not be made ready.", got=str(error), remedy=f"See {log_name(log)}"
            ) from error
        finally:
            self._launching.pop(node, None)
        self._refuse_cancelled()
        resources = handle.launched_resources
        place = "/".join(filter(None, [str(resources.cloud), resources.region, resources.zone]))
        what = f"{resources.instance_type} in {place}{', spot' if resources.use_spot else ''}"
        return Submitted(job_id, what, resources.get_cost(3600), self._running(node, handle))

    @contextmanager
    def _given_up_in_time(self, request: Any, given_up: threading.Event, limit_s: float) -> Iterator[None]:
        """Cancel a request that takes too long: SkyPilot waits without end for a pod that vanished while it booted."""

        def give_up() -> None:
            given_up.set()
            self._sky.get(self._sky.api_cancel([request], silent=True))

        timer = threading.Timer(limit_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _running(self, node: str, handle: Any) -> RunningNode:
        return RunningNode(
            self._sky,
            node,
            handle.get_command_runners()[0],
            idle_minutes=self._idle_minutes.get(node),
            cancelled=self._cancelled,
        )

    def _answers(self, node: str) -> bool:
        """Whether a node answers whose launch did not come to an end."""
        records = self._sky.get(self._sky.status([node]))
        handle = records[0]["handle"] if records else None
        if handle is None:
            return False
        try:
            running = self._running(node, handle)
        except Exception:  # A handle without an address.
            return False
        return running.answers()

    def end(self, node: str) -> None:
        """End a node, or what there is of it; nothing if it is gone.

        Raises:
            Exception: What SkyPilot raises, if it cannot be ended after four tries.
        """
        exceptions = self._sky.exceptions
        if node in self._asked_for:
            answered_at = self._answered_at.setdefault(node, time.monotonic() + LATE_ANSWER_S)
            time.sleep(max(0.0, answered_at - time.monotonic()))
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

    def cancel(self) -> None:
        """Make every call that is waiting give up, and stop what is being rented."""
        self._cancelled.set()
        requests = list(self._launching.values())
        if requests:
            self._sky.get(self._sky.api_cancel(requests, silent=True))

    def strays(self, project: str) -> dict[str, str]:
        """What the cloud itself lists of a project and SkyPilot does not know, as far as the cloud can be asked."""
        if self._infra.split("/")[0].lower() != "runpod":
            return {}
        known = {record["name"] for record in self.nodes()}
        return {pod: node for pod, node in listed_pods(project).items() if node not in known}

    def end_stray(self, pod: str) -> None:
        """End what `strays` has found."""
        end_pod(pod)

    @property
    def may_have_strays(self) -> bool:
        """Whether a launch did not come to a good end: the cloud may have answered it later than it was waited for."""
        return bool(self._asked_for)

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
        # Its own set-up of the node failed.
        RuntimeError,
    )
