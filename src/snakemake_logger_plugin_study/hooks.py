"""What the workflow can tell the logger: it knows the study's targets, and the logger does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Hooks:
    """Functions that a Snakefile sets."""

    unknown_target: Callable[[str], str] | None = None
    """What to say of a target that no rule makes."""
    rule_of_many: Callable[[], str] | None = None
    """What to say of a rule with wildcards that was named as a target."""
    results: Callable[[], str] | None = None
    """What a run that had nothing to do names at its end."""


HOOKS = Hooks()
