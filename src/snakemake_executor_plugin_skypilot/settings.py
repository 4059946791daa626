"""What can be set: `--skypilot-...` on the command line, `skypilot-...:` in a profile."""

# No postponed annotations: Snakemake reads each field's type to make its option.

from dataclasses import dataclass, field
from typing import Any

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase


def _setting(default: Any, help: str, kind: type | None = None) -> Any:
    """A field with its help; `kind` where the field may be None."""
    return field(default=default, metadata={"help": help} | ({} if kind is None else {"type": kind}))


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """Settings of all jobs; a rule's resources `accelerators`, `disk_gb` and `spot` come before them."""

    infra: str = _setting(
        "runpod", "Where to rent, as SkyPilot writes it: a cloud, or a cloud with region and zone (runpod/CA/CA-MTL-1)."
    )
    accelerators: str | None = _setting(
        None,
        "Accelerators of jobs whose rule names none, alternatives by comma (A100-80GB:1,H100-SXM:1): the cheapest that "
        "is to be had is taken. Without: a node without accelerator.",
        str,
    )
    use_spot: bool = _setting(False, "Rent nodes that may be taken away, at a lower price.")
    disk_size: int = _setting(100, "Disk of a node in GB, where the rule has no resource disk_gb.")
    image: str | None = _setting(
        None, "Container image of the nodes, such as docker:ubuntu:24.04. Default: that of the cloud.", str
    )
    requirements: str | None = _setting(
        None,
        "File with pinned requirements (Snakemake among them) that are installed once on each node, into an "
        "environment of its own that the jobs run in. Without: the image has to have Snakemake.",
        str,
    )
    python: str | None = _setting(
        None, "Version of Python of that environment, such as 3.12. Default: that of this process.", str
    )
    setup: str | None = _setting(
        None, "Shell commands that run once on each node, in the workflow's folder, after that.", str
    )
    prelude: str | None = _setting(None, "Shell commands that run before each job.", str)
    secrets: str | None = _setting(
        None,
        "Names of environment variables, by comma, that jobs get as SkyPilot's secrets: no log and no command line "
        "shows their values. One that is not set is left out.",
        str,
    )
    env_file: str = _setting(
        ".env", "File with more environment variables for this process (keys of clouds, say). Never sent to a node."
    )
    reuse: int = _setting(
        0,
        "Rent up to N nodes of a kind and keep them for following jobs, which wait for one of them; all are ended when "
        "the run is. 0: a node for each job.",
    )
    idle_minutes: int = _setting(
        10, "A node without a job ends itself after so many minutes, whatever became of this process."
    )
    launch_minutes: int = _setting(
        20,
        "A node that is not ready after so many minutes, and a second for each MB that is sent, is given up for "
        "another: it may have been taken away.",
    )
    keep_running: bool = _setting(False, "End no node, not even when idle: to look at what happened. They cost money.")
    resume_seconds: int = _setting(
        300,
        "So often the files of a job's resource `resume` come here while it runs: what it goes on from if its node is "
        "lost.",
    )
    max_recoveries: int = _setting(
        3, "Replace a node that was lost so many times for each job; the last time one that cannot be taken away."
    )
    max_price_per_hour: float | None = _setting(None, "Rent no node that costs more dollars an hour.", float)
    max_price_total: float | None = _setting(
        None,
        "Start nothing if what the run spent, and what its jobs take by their resource `runtime`, is more dollars; end "
        "all nodes when it has spent that.",
        float,
    )
    project: str | None = _setting(
        None,
        "Name in the names of nodes, smk-PROJECT-PLACE-RUN-NUMBER (PLACE: four digits of where the working directory "
        "is). Default: that of the working directory.",
        str,
    )
    end_orphans: bool = _setting(
        False, "End the nodes that earlier runs of this directory left, before anything is rented."
    )
