"""While tests run, every function of the package is checked against its annotations, the shapes of arrays included."""

from __future__ import annotations

import functools
import gc
import os
from importlib.machinery import SourceFileLoader
from types import CodeType
from unittest.mock import patch

import dataframely as dy
import pytest
from hypothesis import settings
from jaxtyping import _import_hook, install_import_hook
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# What is imported and collected lasts until the end: Python need not look through it time and again.
gc.disable()

# Before anything imports huggingface_hub: what a test wants of a hub, it has to put there itself.
os.environ["HF_HUB_OFFLINE"] = "1"

# Before anything imports Triton: its kernels run here on arrays of the CPU, one program after the other.
os.environ["TRITON_INTERPRET"] = "1"

# Tests start some hundred processes that import the package: it is compiled once, not by each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No test fails for the machine's being busy.
settings.register_profile("outlier_moe", deadline=None)
settings.load_profile("outlier_moe")

# A schema's repr lists its columns, which beartype takes for a hint that it does not know.
type.__setattr__(type(dy.Schema), "__repr__", type.__repr__)
install_import_hook("outlier_moe", "beartype.beartype")


class _Loader(_import_hook._JaxtypingLoader):
    """Looks for a checked module's own compiled code under another name, and not for that of all it imports.

    Jaxtyping's own loader does so while the module is executed, so that torch, transformers and all else that is
    imported from there is compiled from its source once more.
    """

    def get_code(self, fullname: str) -> CodeType | None:
        name = functools.partial(_import_hook._optimized_cache_from_source, self._typechecker.get_hash())
        with patch("importlib._bootstrap_external.cache_from_source", name):
            return super().get_code(fullname)

    exec_module = SourceFileLoader.exec_module


_import_hook._JaxtypingLoader = _Loader


class _WholeStudiesFirst(LoadScopeScheduling):
    """Each module that runs a whole study goes to one worker, so that its fixture is made once; others test by test."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.rsplit("::", 1)[0] if nodeid.startswith(("tests/workflow", "tests/browser")) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Scopes with the most tests are started first."""
    return _WholeStudiesFirst(config, log)


def pytest_collection_finish() -> None:
    """From here on garbage is looked for in what tests make."""
    gc.freeze()
    gc.enable()
