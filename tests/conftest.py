"""While tests run, every function of the package is checked against its annotations, the shapes of arrays included."""

from __future__ import annotations

import os

import dataframely as dy
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before anything imports huggingface_hub: what a test wants of a hub, it has to put there itself.
os.environ["HF_HUB_OFFLINE"] = "1"

# No test fails for the machine's being busy.
settings.register_profile("outlier_moe", deadline=None)
settings.load_profile("outlier_moe")

# A schema's repr lists its columns, which beartype takes for a hint that it does not know.
type.__setattr__(type(dy.Schema), "__repr__", type.__repr__)
install_import_hook("outlier_moe", "beartype.beartype")


class _WholeStudiesFirst(LoadScopeScheduling):
    """Each module that runs a whole study goes to one worker, so that its fixture is made once; others test by test."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.rsplit("::", 1)[0] if nodeid.startswith(("tests/workflow", "tests/browser")) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Scopes with the most tests are started first."""
    return _WholeStudiesFirst(config, log)
