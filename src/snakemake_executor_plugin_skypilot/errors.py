"""What goes wrong with rented nodes, and how it is told."""

from __future__ import annotations

from snakemake_interface_common.exceptions import WorkflowError


class NodeLostError(Exception):
    """A node is gone or answers no more: its job runs again on another."""


class NoCapacityError(Exception):
    """No such node can be rented now."""


class CancelledError(Exception):
    """The run is being ended."""


def told(problem: str, *, key: str | None = None, got: object = None, remedy: str | None = None) -> WorkflowError:
    """A mistake that the user can mend, as Snakemake shows it.

    Args:
        problem: One sentence that says what is wrong.
        key: The setting, resource or variable.
        got: What was found there.
        remedy: What to do about it.
    """
    details = {"key": key, "got": got, "remedy": remedy}
    return WorkflowError(
        "\n".join([problem, *(f"  {name}: {what}" for name, what in details.items() if what is not None)])
    )
