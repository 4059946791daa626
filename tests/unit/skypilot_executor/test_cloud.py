"""What is made of SkyPilot's answers and of its own exceptions; its functions are replaced."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_interface_common.exceptions import WorkflowError

from snakemake_executor_plugin_skypilot import cloud as cloud_module
from snakemake_executor_plugin_skypilot import running_node, runpod_pods
from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask
from snakemake_executor_plugin_skypilot.errors import CancelledError, NoCapacityError, NodeLostError
from snakemake_executor_plugin_skypilot.nodes_wanted import Accelerators, WantedNode

CARDS = (Accelerators("A100-80GB", 1), Accelerators("H100-SXM", 2))
WANTED = WantedNode(CARDS, 200, True, 0, idle_minutes=9, max_price_per_hour=3.0)


class _Runner:
    """A node's shell: it answers as long as it is told to."""

    def __init__(self) -> None:
        self.answers = [True]
        self.commands: list[str] = []

    def run(self, command: str, **_: Any) -> int:
        self.commands.append(command)
        there = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return 0 if there else 255

    def ssh_base_command(self, **_: Any) -> list[str]:
        return ["ssh", "-T", "root@node"]


class _Sky:
    """SkyPilot with some of its functions replaced; the rest, its types above all, is its own."""

    def __init__(self, sky: Any) -> None:
        self._sky = sky
        self.runner = _Runner()
        self.asked: list[tuple[str, Any]] = []
        self.launched: Any = None
        self.launch_problem: Exception | None = None
        self.downs: list[Exception | None] = []
        self.codes: list[Any] = []
        self.records: list[Any] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sky, name)

    def launch(self, task: Any, **settings: Any) -> str:
        self.asked.append(("launch", settings))
        self.launched = task
        return "request"

    def exec(self, task: Any, **settings: Any) -> str:
        self.asked.append(("exec", settings))
        self.launched = task
        return "request"

    def stream_and_get(self, request: str, output_stream: Any) -> tuple[int, Any]:
        self.meanwhile()
        if self.launch_problem is not None:
            raise self.launch_problem
        place = {"cloud": "RunPod", "region": "RO", "zone": None, "instance_type": "1x_A", "use_spot": True}
        resources = SimpleNamespace(**place, get_cost=lambda seconds: seconds / 3600 * 1.5)
        return 7, SimpleNamespace(get_command_runners=lambda: [self.runner], launched_resources=resources)

    def tail_logs(self, node: str, job: int, **_: Any) -> Any:
        self.meanwhile()
        code = self.codes.pop(0)
        if isinstance(code, Exception):
            raise code
        return code

    def down(self, node: str) -> str:
        self.asked.append(("down", node))
        problem = self.downs.pop(0) if self.downs else None
        if problem is not None:
            raise problem
        return "request"

    def status(self, *_: Any, **__: Any) -> list[Any]:
        return self.records

    def api_cancel(self, requests: list[str], silent: bool) -> str:
        self.asked.append(("api_cancel", requests))
        return "request"

    def get(self, request: Any) -> Any:
        return request


@pytest.fixture
def fake(sky: Any, monkeypatch: pytest.MonkeyPatch) -> _Sky:
    """SkyPilot without its server; nothing waits."""
    replaced = _Sky(sky)
    monkeypatch.setattr(cloud_module, "import_sky", lambda: replaced)
    monkeypatch.setattr(running_node, "PATIENCE_S", 0)
    monkeypatch.setattr(running_node, "PROBE_EVERY_S", 0)
    monkeypatch.setattr(running_node, "LAST_SECONDS", 0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return replaced


@pytest.fixture
def cloud(fake: _Sky) -> Cloud:
    """What is tested."""
    return Cloud("runpod", image=None, keep_running=False, launch_minutes=20)


def _task(folder: Path, wanted: WantedNode = WANTED) -> NodeTask:
    return NodeTask("evaluate", folder, "true", "false", {"HF_TOKEN": "s3cret"}, wanted)


def test_what_is_asked_for(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """Alternatives, disk, caps, the idle limit, the secret as a secret; and what one gets."""
    submitted = cloud.launch(_task(tmp_path), "n0", io.StringIO())
    assert fake.asked == [("launch", {"cluster_name": "n0", "idle_minutes_to_autostop": 9, "down": True})]
    choices = {str(each.accelerators): each for each in fake.launched.resources}
    assert set(choices) == {"{'A100-80GB': 1}", "{'H100-SXM': 2}"}
    assert all(each.use_spot and each.disk_size == 200 and each.max_hourly_cost == 3.0 for each in choices.values())
    assert "s3cret" not in str(fake.launched.envs) and set(fake.launched.secrets) == {"HF_TOKEN"}
    assert (submitted.job_id, submitted.what, submitted.price_per_hour) == (7, "1x_A in RunPod/RO, spot", 1.5)


def test_node_without_accelerator(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """So many processors at least; on a node that is there it is only started."""
    cloud.launch(_task(tmp_path, WantedNode((), 50, False, 6)), "n0", io.StringIO())
    (resources,) = fake.launched.resources
    assert resources.cpus == "6+" and resources.accelerators is None
    cloud.start(_task(tmp_path), "n0", io.StringIO())
    assert fake.asked[-1] == ("exec", {"cluster_name": "n0"})


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [
        ("ResourcesUnavailableError", True, NoCapacityError),
        ("CloudError", True, NoCapacityError),
        ("ClusterDoesNotExist", True, NodeLostError),
        ("FetchClusterInfoError", True, NodeLostError),
        ("RequestInterruptedError", True, NodeLostError),
        ("RequestCancelled", True, CancelledError),
        ("RuntimeError", True, NodeLostError),
        ("CommandError", False, NodeLostError),
        ("CommandError", True, WorkflowError),
        ("NotSupportedError", True, None),
    ],
)
def test_launches_that_go_wrong(
    fake: _Sky, cloud: Cloud, tmp_path: Path, name: str, there: bool, expected: type[Exception] | None
) -> None:
    """What may pass, what was the node's end, and what is a mistake; what nobody foresaw stays what it is."""
    kind = getattr(fake.exceptions, name, RuntimeError)
    special = {
        "CommandError": (1, "rsync", "no \x1b[31mroute", "detail"),
        "FetchClusterInfoError": (fake.exceptions.FetchClusterInfoError.Reason.HEAD,),
        "CloudError": ("broke", "runpod", "QueryError"),
    }
    arguments = special.get(name, ("broke",))
    try:
        fake.launch_problem = kind(*arguments)
    except TypeError:
        fake.launch_problem = kind("broke", "runpod", "QueryError")
    fake.runner.answers = [there]
    fake.records = [{"handle": SimpleNamespace(get_command_runners=lambda: [fake.runner])}]
    with pytest.raises(expected or kind):
        cloud.launch(_task(tmp_path), "n0", io.StringIO())


def test_the_way_to_the_cloud(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """A connection that cannot be made may be made another time."""
    fake.launch_problem = ConnectionError("refused")
    with pytest.raises(NoCapacityError, match="ConnectionError: refused"):
        cloud.launch(_task(tmp_path), "n0", io.StringIO())


def test_cancelled_while_launching(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """The request is stopped, and no node is given; nor is any from then on."""
    fake.meanwhile = cloud.cancel
    with pytest.raises(CancelledError):
        cloud.launch(_task(tmp_path), "n0", io.StringIO())
    assert ("api_cancel", ["request"]) in fake.asked
    with pytest.raises(CancelledError):
        cloud.launch(_task(tmp_path), "n1", io.StringIO())
    assert [what for what, _ in fake.asked].count("launch") == 1


def test_what_was_broken_off_is_ended_when_it_has_been_answered(
    fake: _Sky, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud may go on with a request for a node: ended at once, nothing would be there, and SkyPilot forget it."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    cloud.launch(_task(tmp_path), "good", io.StringIO())
    cloud.end("good")
    assert waits == [] and not cloud.may_have_strays
    fake.launch_problem = ConnectionError("refused")
    with pytest.raises(NoCapacityError):
        cloud.launch(_task(tmp_path), "n0", io.StringIO())
    cloud.end("n0")
    assert waits == [pytest.approx(cloud_module.LATE_ANSWER_S, abs=1)] and cloud.may_have_strays


def test_nodes_that_only_the_cloud_knows(fake: _Sky, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """RunPod's own list, less what SkyPilot knows; other clouds are not asked."""
    project, node = "smk-p-0a1b", "smk-p-0a1b-00aaff-1"
    pods = {
        "a": {"name": f"{node}-fcd1e5cf-head"},
        "b": {"name": "smk-p-0a1b-00aaff-12-fcd1e5cf-head"},
        "c": {"name": "smk-p-0a1c-00aaff-1-fcd1e5cf-head"},
        "d": {"name": "somebody-elses"},
    }
    library = SimpleNamespace(list_instances=lambda: pods)
    monkeypatch.setattr(runpod_pods, "_library", lambda: library)
    assert cloud.strays(project) == {"a": node, "b": "smk-p-0a1b-00aaff-12"}
    fake.records = [{"name": node}]
    assert cloud.strays(project) == {"b": "smk-p-0a1b-00aaff-12"}
    elsewhere = Cloud("aws/us-east-1", image=None, keep_running=False, launch_minutes=5)
    assert elsewhere.strays(project) == {}


def test_secrets_are_in_no_command_line(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """SkyPilot sends as a file what is too long for ssh's command line, and the secrets are in the same script."""
    from sky.utils.command_runner import MAX_INLINE_COMMAND_LENGTH  # pyright: ignore[reportMissingImports]

    cloud.launch(_task(tmp_path)._replace(secrets={}), "n0", io.StringIO())
    assert len(fake.launched.run) < 1000
    cloud.start(_task(tmp_path)._replace(secrets={"HF_TOKEN": "s3cret"}), "n0", io.StringIO())
    assert len(fake.launched.run) > MAX_INLINE_COMMAND_LENGTH


def test_what_is_sent_has_time(cloud: Cloud, tmp_path: Path) -> None:
    """Sending weights may take longer than a node may take to be ready."""
    before = cloud._limit_s(_task(tmp_path))
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(60 * 10**9)
    assert cloud._limit_s(_task(tmp_path)) == pytest.approx(before + 60_000, rel=1e-3)


def test_never_ready(fake: _Sky, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes too long is given up: its request is stopped, and the job goes to another."""
    monkeypatch.setattr(cloud, "_launch_minutes", 0.0001)
    stopped = threading.Event()
    monkeypatch.setattr(fake, "api_cancel", lambda requests, silent: stopped.set(), raising=False)
    fake.meanwhile = lambda: stopped.wait(10)
    fake.launch_problem = fake.exceptions.RequestCancelled("cancelled")
    with pytest.raises(NodeLostError, match="not ready after 0.0001 minutes"):
        cloud.launch(_task(tmp_path), "n0", io.StringIO())
    assert stopped.is_set()


def _follow(fake: _Sky, cloud: Cloud, tmp_path: Path, codes: list[Any], answers: list[bool], spot: bool = True) -> bool:
    node = cloud.launch(_task(tmp_path), "n0", io.StringIO()).node
    fake.codes, fake.runner.answers = codes, answers
    return node.follow(7, io.StringIO(), may_vanish=spot)


@pytest.mark.parametrize(
    ("codes", "answers", "expected"),
    [
        ([0], [False], True),
        ([100], [True], False),
        ([100], [False], NodeLostError),
        ([103], [True], CancelledError),
        ([103], [False], NodeLostError),
        ([102], [True], NodeLostError),
        ([255], [False], NodeLostError),
        ([255, 0], [True], True),
        ([101, None, 100], [True], False),
        ([RuntimeError("reset"), 0], [True], True),
        ([RuntimeError("reset")] * 99, [True], WorkflowError),
    ],
)
def test_how_a_stream_ends(
    fake: _Sky, cloud: Cloud, tmp_path: Path, codes: list[Any], answers: list[bool], expected: Any
) -> None:
    """By the code that SkyPilot gives and whether the node still answers."""
    if isinstance(expected, bool):
        assert _follow(fake, cloud, tmp_path, codes, answers) is expected
    else:
        with pytest.raises(expected):
            _follow(fake, cloud, tmp_path, codes, answers)


def test_failed_just_as_it_vanishes(fake: _Sky, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spot node gets some seconds to be gone before its job's failure is believed; cancelling breaks that off."""
    monkeypatch.setattr(running_node, "LAST_SECONDS", 1000)
    fake.meanwhile = lambda: threading.Timer(0.05, cloud.cancel).start() if fake.codes else None
    with pytest.raises(CancelledError):
        _follow(fake, cloud, tmp_path, [100], [True])


def test_ended_by_the_run(fake: _Sky, cloud: Cloud, tmp_path: Path) -> None:
    """Whatever code the stream of an ended node has."""
    fake.meanwhile = lambda: cloud.cancel() if fake.codes else None
    with pytest.raises(CancelledError):
        _follow(fake, cloud, tmp_path, [255], [False])


def test_ending(fake: _Sky, cloud: Cloud) -> None:
    """It is tried again; a node that is not there is ended."""
    fake.downs = [RuntimeError("500"), RuntimeError("500"), None]
    cloud.end("n0")
    assert fake.asked == [("down", "n0")] * 3
    fake.downs = [fake.exceptions.ClusterDoesNotExist("n1")]
    cloud.end("n1")
    fake.downs = [RuntimeError("500")] * 9
    with pytest.raises(RuntimeError):
        cloud.end("n2")


@pytest.mark.parametrize(("answers", "expected"), [([True], WorkflowError), ([False], NodeLostError)])
def test_copies_that_fail(
    fake: _Sky,
    cloud: Cloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[bool],
    expected: type[Exception],
) -> None:
    """Of a node that answers it is this machine's fault, or the files'; nothing is left lying about."""
    node = cloud.launch(_task(tmp_path), "n0", io.StringIO()).node
    fake.runner.answers = answers
    monkeypatch.setattr(running_node, "copy_from", lambda *_: "rsync: No space left on device (28)")
    with pytest.raises(expected, match="No space left"):
        node.bring(["out"], tmp_path, scratch=tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_kept_nodes_never_end_themselves(fake: _Sky, tmp_path: Path) -> None:
    """To be looked at, whatever their idle limit."""
    kept = Cloud("runpod", image=None, keep_running=True, launch_minutes=20)
    kept.launch(_task(tmp_path), "n0", io.StringIO())
    assert fake.asked == [("launch", {"cluster_name": "n0", "idle_minutes_to_autostop": None, "down": False})]


def test_node_stays_awake(fake: _Sky, cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long copy lasts, its idle clock is set back."""
    node = cloud.launch(_task(tmp_path), "n0", io.StringIO()).node
    monkeypatch.setattr(node, "_idle_minutes", 0.001)
    done = threading.Event()
    monkeypatch.setattr(
        fake.runner, "run", lambda command, **_: fake.runner.commands.append(command) or done.set() or 0
    )
    monkeypatch.setattr(running_node, "copy_from", lambda *_: None if done.wait(10) else "it slept")
    node.bring(["out"], tmp_path, scratch=tmp_path / "scratch")
    assert "set_last_active_time_to_now" in fake.runner.commands[0]
