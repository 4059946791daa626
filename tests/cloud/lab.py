"""A laboratory for the executor: a stand-in for RunPod, whose pods are namespaces of this machine, and SkyPilot itself.

Nothing leaves the machine: RunPod's address is one on loopback, and a pod's only network is a veth pair.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.request import Request, urlopen

from tests.cloud.stand_in.catalog import write_catalog

STAND_IN = Path(__file__).parent / "stand_in"
KEY = "made-up-key-of-the-stand-in"
# Made up; no log and no file of the laboratory may have them.
TOKENS = {"HF_TOKEN": "hf_made_up_token_of_a_test", "WORKFLOW_TOKEN": "another_made_up_token"}
# The address of this machine that all pods reach (stand_in/pod.sh).
SERVED_AT = "10.77.0.1"
COMMANDS = ("ip", "unshare", "rsync", "ssh", "/usr/sbin/sshd")


def why_not() -> str | None:
    """Why there can be no laboratory here; None if there can."""
    if importlib.util.find_spec("sky") is None:
        return "SkyPilot is not installed here: make test-cloud"
    if os.geteuid() != 0:
        return "pods are namespaces, which only root can make"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2 rsync openssh-client openssh-server)"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlayfs"
    return None


class Lab:
    """The stand-in and SkyPilot's server, with a home of their own.

    Args:
        folder: For all files; pods do not see it.
        image: What pods have beside this machine's root; made if it is not there.
    """

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.image = image
        self.port = free_port()
        self.environment = self._environment()
        self._api: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SKYPILOT", "RUNPOD", "HF_"))}
        tools = Path(sys.executable).parent
        return kept | {
            "HOME": str(self.home),
            "PATH": f"{tools}:{kept['PATH']}",
            "RUNPOD_API_BASE_URL": f"http://127.0.0.1:{self.port}",
            "RUNPOD_API_KEY": KEY,
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "SKYPILOT_API_SERVER_LOCAL_PORT": str(free_port()),
            "no_proxy": "*",
        }

    def start(self) -> None:
        """Make the image if need be, and start the stand-in; SkyPilot's server is started by whoever asks it first.

        Waits for another laboratory of this machine: the names and addresses of pods are the same in all.
        """
        self.image.parent.mkdir(parents=True, exist_ok=True)
        self._lock = (self.image.parent / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.home.mkdir(parents=True)
        (self.folder / "extra/wheelhouse").mkdir(parents=True)
        write_catalog(self.home)
        make_image(self.image)
        environment = self.environment | {
            "POD_IMAGE": str(self.image),
            "POD_HIDES": str(self.folder),
            "POD_API_PORT": str(self.port),
        }
        command = [sys.executable, STAND_IN / "runpod_api.py", str(self.port), KEY, self.folder]
        with (self.folder / "runpod_api.log").open("w") as log:
            self._api = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(lambda: listens("127.0.0.1", self.port), seconds=30)

    def stop(self) -> None:
        """End SkyPilot's server, all pods and the stand-in."""
        subprocess.run(["sky", "api", "stop"], env=self.environment, capture_output=True, timeout=60)
        for pod in self.pods:
            self.steer("preempt", id=pod["id"])
        if self._api is not None:
            self._api.terminate()
            self._api.wait()
        subprocess.run(["ip", "addr", "del", f"{SERVED_AT}/32", "dev", "lo"], capture_output=True)
        if self._lock is not None:
            self._lock.close()

    def serve_wheels(self, *requirements: str | Path) -> None:
        """Have pods install some requirements, in place of from an index: they have no network."""
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--wheel-dir", self.folder / "extra/wheelhouse", *requirements], check=True)

    @property
    def state(self) -> dict[str, Any]:
        """Pods and events, as the stand-in tells them."""
        with urlopen(f"http://127.0.0.1:{self.port}/state") as answer:
            return json.load(answer)

    @property
    def pods(self) -> list[dict[str, Any]]:
        """The pods there are, those that do not run among them."""
        return self.state["pods"]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What has happened of a kind in this test."""
        return [event for event in self.state["events"] if event["event"] == kind]

    def steer(self, action: str, **values: object) -> None:
        """Have something happen: preempt, cut, refuse, late, break, anew (see stand_in/runpod_api.py)."""
        query = "&".join(f"{name}={value}" for name, value in values.items())
        with urlopen(Request(f"http://127.0.0.1:{self.port}/{action}?{query}", data=b"")) as answer:
            answer.read()

    def wait_for_no_pod(self, seconds: float) -> float:
        """Wait until all pods are gone; how many seconds that took."""
        start = time.monotonic()
        wait_for(lambda: not self.pods, seconds=seconds)
        return time.monotonic() - start

    def snakemake(self, folder: Path, *arguments: str, **extra: str) -> Driver:
        """Start Snakemake in a workflow's folder, with variables beside this laboratory's."""
        return Driver(folder, arguments, self.environment | extra)


class Driver:
    """Snakemake, and what it says, in a process group of its own.

    Args:
        folder: The workflow's.
        arguments: Of its command line.
        environment: Its environment.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self._log = folder / f"driver-{len(list(folder.glob('driver-*.log')))}.log"
        # Tests that are started in the background hand on that they heed no Ctrl-C.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "snakemake"]
        command += ["--executor", "skypilot", "--local-cores", "1", *arguments]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def said(self) -> str:
        """Its output so far."""
        return self._log.read_text()

    @property
    def all_said(self) -> str:
        """Its output and that of all its jobs on nodes: for whoever wants to know why a test failed."""
        logs = sorted(self._log.parent.glob(".snakemake/skypilot/logs/*/*.log"))
        return "\n".join([self.said, *(f"--- {path.name}\n{path.read_text()}" for path in logs)])

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait(self, seconds: float = 900) -> int:
        """Wait for its end; its exit code."""
        return self._process.wait(seconds)

    def wait_until(self, said: str, seconds: float = 400) -> None:
        """Wait until it has said something.

        Raises:
            AssertionError: If it ends without.
        """
        deadline = time.monotonic() + seconds
        while said not in self.said:
            can_come = self.is_running and time.monotonic() < deadline
            assert can_come or said in self.said, self.said
            time.sleep(0.2)

    def signal(self, number: int) -> None:
        """Send a signal to it and all that it started, as a terminal does; nothing if it has ended."""
        if self.is_running:
            os.killpg(self._process.pid, number)


# Starts Snakemake with arguments and more variables.
Start = Callable[..., Driver]


def make_image(folder: Path) -> None:
    """What pods have beside this machine's root: a minute, once."""
    with warnings.catch_warnings():
        # Of old interfaces that SkyPilot's own imports use.
        warnings.simplefilter("ignore")
        import sky  # pyright: ignore[reportMissingImports]
        from sky.skylet.constants import SKY_REMOTE_RAY_VERSION  # pyright: ignore[reportMissingImports]

    folder.parent.mkdir(parents=True, exist_ok=True)
    base = Path(sys.base_prefix) / "bin/python3"
    subprocess.run([STAND_IN / "image.sh", folder, base, sky.__version__, SKY_REMOTE_RAY_VERSION], check=True)


def listens(address: str, port: int) -> bool:
    """Whether something answers there."""
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(holds: Callable[[], object], seconds: float) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: If it does not come true.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"It did not come true within {seconds:.0f} s.")
        time.sleep(0.5)
