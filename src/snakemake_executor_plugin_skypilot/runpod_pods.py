"""Pods as RunPod itself lists them: one that was asked for by a request that broke off is unknown to SkyPilot."""

from __future__ import annotations

from typing import Any

from snakemake_executor_plugin_skypilot.names import node_of_pod


def listed_pods(project: str) -> dict[str, str]:
    """The pods of a project's nodes.

    Args:
        project: What the names of its nodes begin with (see names.project_name).

    Returns:
        The name of the node that each belongs to, by the pod's identity.
    """
    named = {pod: node_of_pod(facts["name"], project) for pod, facts in _library().list_instances().items()}
    return {pod: node for pod, node in named.items() if node is not None}


def end_pod(pod: str) -> None:
    """End a pod."""
    _library().remove(pod)


def _library() -> Any:
    from sky.provision.runpod import utils  # pyright: ignore[reportMissingImports]

    return utils
