"""What earlier runs left is told, and ended if that is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snakemake_executor_plugin_skypilot.opening import _tell_orphans

PROJECT = "smk-p-0a1b"


class _Cloud:
    """A cloud with a node that ends itself, one that does not, and a pod that SkyPilot does not know."""

    def __init__(self) -> None:
        self.records = [
            {"name": f"{PROJECT}-00000a-0", "autostop": 10, "to_down": True},
            {"name": f"{PROJECT}-00000a-1", "autostop": -1, "to_down": False},
            {"name": "smk-q-0a1b-00000a-0", "autostop": -1, "to_down": False},
        ]
        self.pods: dict[str, str] | Exception = {"pod": f"{PROJECT}-00000a-2"}
        self.ended: list[str] = []

    def nodes(self, refresh: bool = False) -> list[Any]:
        return self.records

    def strays(self, project: str) -> dict[str, str]:
        if isinstance(self.pods, Exception):
            raise self.pods
        return self.pods

    def end(self, node: str) -> None:
        self.ended.append(node)

    def end_stray(self, pod: str) -> None:
        self.ended.append(pod)


def _told(cloud: _Cloud, folder: Path, *, end: bool = False) -> str:
    said: list[str] = []
    _tell_orphans(cloud, PROJECT, folder, warn=said.append, end=end)  # pyright: ignore[reportArgumentType]
    return "\n".join(said)


def test_those_that_stay_are_named(tmp_path: Path) -> None:
    """Not every node ends itself."""
    cloud = _Cloud()
    said = _told(cloud, tmp_path)
    first, second, stray = (f"{PROJECT}-00000a-{number}" for number in range(3))
    assert f"cost money: {first}, {second}, {stray}. All but {second}, {stray} end themselves when idle" in said
    cloud.records, cloud.pods = cloud.records[:1], {}
    assert "They end themselves when idle" in _told(cloud, tmp_path)
    cloud.records, cloud.pods = [], {"pod": stray}
    assert f"{stray}. They do not end themselves" in _told(cloud, tmp_path)
    cloud.pods = {}
    assert _told(cloud, tmp_path) == "" and cloud.ended == []


def test_they_are_ended_on_demand(tmp_path: Path) -> None:
    """Those of this project alone."""
    cloud = _Cloud()
    _told(cloud, tmp_path, end=True)
    assert cloud.ended == [f"{PROJECT}-00000a-0", f"{PROJECT}-00000a-1", "pod"]


def test_a_cloud_that_gives_no_list_ends_no_run(tmp_path: Path) -> None:
    """What SkyPilot knows is told all the same."""
    cloud = _Cloud()
    cloud.pods = ConnectionError("refused")
    said = _told(cloud, tmp_path)
    assert "could not be seen: ConnectionError: refused" in said and f"{PROJECT}-00000a-0" in said
