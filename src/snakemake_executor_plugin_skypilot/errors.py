"""What goes wrong with rented nodes, and how it is told."""

from __future__ import annotations

import re

from snakemake_interface_common.exceptions import WorkflowError

# Escape sequences of terminals.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


class RentalError(WorkflowError):
    """A mistake that the user can mend, or a limit of theirs: Snakemake shows it without a traceback."""


class NodeLostError(Exception):
    """A node is gone or answers no more: its job runs again on another."""


class KeptNodeGoneError(NodeLostError):
    """A node that waited for a job was gone when one came: nothing was lost."""


class NoCapacityError(Exception):
    """No such node can be rented now.

    Args:
        reason: Why.
        was_rented: Whether something may have been rented all the same, for a while.
    """

    def __init__(self, reason: str, *, was_rented: bool = False) -> None:
        super().__init__(reason)
        self.was_rented = was_rented


class CancelledError(Exception):
    """The run is being ended."""


def rental_error(problem: str, *, key: str | None = None, got: object = None, remedy: str | None = None) -> RentalError:
    """Such a mistake, as Snakemake shows it.

    Args:
        problem: One sentence that says what is wrong.
        key: The setting, resource or variable.
        got: What was found there.
        remedy: What to do about it.
    """
    details = {"key": key, "got": got, "remedy": remedy}
    return RentalError(
        "\n".join([problem, *(f"  {name}: {what}" for name, what in details.items() if what is not None)])
    )


def first_line(error: Exception) -> str:
    """An error's kind, and the beginning of what it says."""
    said = CONTROL.sub("", str(error)).strip()
    return f"{type(error).__name__}: {said.splitlines()[0] if said else ''}"
