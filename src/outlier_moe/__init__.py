"""Measure outlier features in dense and Mixture-of-Experts transformers, from 0.1B to 1T parameters."""

from importlib import import_module

__version__ = "0.1.0"

# The way in from Python (`outlier_moe.api`), which takes torch and polars along when it is first used. By name, so that
# the floors below, which ask for the version, import nothing of it; `__init__.pyi` tells type checkers.
_API = ("Recording", "compare", "load", "record")


def __getattr__(name: str) -> object:
    if name in _API:
        return getattr(import_module("outlier_moe.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
