"""The opening of a run: what earlier ones left is told, it gets its name, and its nodes a pool and a ledger."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_skypilot.cloud import Cloud
from snakemake_executor_plugin_skypilot.errors import first_line
from snakemake_executor_plugin_skypilot.ledger import Ledger
from snakemake_executor_plugin_skypilot.masked_log import Secrets
from snakemake_executor_plugin_skypilot.names import node_name, project_name
from snakemake_executor_plugin_skypilot.pool import NodePool
from snakemake_executor_plugin_skypilot.remote_job import Run
from snakemake_executor_plugin_skypilot.runs import RUNS, RunLock, is_orphan, orphans
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings
from snakemake_executor_plugin_skypilot.watching import ends_itself


def open_run(
    settings: ExecutorSettings, cloud: Cloud, secrets: Secrets, logger: Any, *, root: Path, state: Path
) -> tuple[Run, RunLock]:
    """Open a run.

    Args:
        settings: The executor's.
        cloud: SkyPilot.
        secrets: What no message may show: what SkyPilot or a cloud says of an error may hold what it was sent.
        logger: Tells the user something.
        root: The workflow's folder.
        state: The plugin's folder.
    """
    arriving = state / "arriving"
    shutil.rmtree(arriving, ignore_errors=True)
    project = project_name(root, settings.project)
    _tell_orphans(
        cloud,
        project,
        state / RUNS,
        warn=lambda what: logger.warning(secrets.masked(what)),
        end=settings.end_orphans,
    )
    lock = RunLock(state / RUNS)

    def report(problem: str) -> None:
        logger.error(secrets.masked(problem))

    ledger = Ledger(state / "costs.jsonl", report)
    numbers, run = itertools.count(), lock.name
    pool = NodePool(
        lambda: node_name(project, run, next(numbers)),
        cloud.end,
        reuse=settings.reuse,
        keep_running=settings.keep_running,
        report=report,
        unused=lambda node, since, until: ledger.add_unused(
            run, node.name, node.what, node.price_per_hour, since, until
        ),
    )
    opened = Run(
        name=run,
        root=root,
        arriving=arriving,
        cloud=cloud,
        pool=pool,
        ledger=ledger,
        max_recoveries=settings.max_recoveries,
        max_price_total=settings.max_price_total,
        resume_every_s=settings.resume_seconds,
        say=lambda what: logger.info(secrets.masked(what)),
    )
    return opened, lock


def _tell_orphans(cloud: Cloud, project: str, runs: Path, *, warn: Callable[[str], None], end: bool) -> None:
    left = orphans(cloud.nodes(), project, runs)
    if left:
        # Only now: asking the cloud takes SkyPilot seconds for each node.
        left = orphans(cloud.nodes(refresh=True), project, runs)
    try:
        pods = {pod: node for pod, node in cloud.strays(project).items() if is_orphan(node, project, runs)}
    except Exception as error:  # Whatever the cloud's library raises: SkyPilot's own list is there.
        warn(f"Whether the cloud has nodes that SkyPilot does not know could not be seen: {first_line(error)}")
        pods = {}
    names = [*(node["name"] for node in left), *pods.values()]
    if not names:
        return
    if end:
        warn(f"Ending nodes that earlier runs left: {', '.join(names)}")
        for node in left:
            cloud.end(node["name"])
        for pod in pods:
            cloud.end_stray(pod)
        return
    staying = [*(node["name"] for node in left if not ends_itself(node)), *pods.values()]
    how = f"All but {', '.join(staying)} end" if staying else "They end"
    how = "They do not end" if len(staying) == len(names) else how
    remedy = f"{how} themselves when idle; --skypilot-end-orphans ends them now."
    warn(f"Earlier runs left nodes, which cost money: {', '.join(names)}. {remedy}")
