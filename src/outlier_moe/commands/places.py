"""Where the files of a study lie, seen from its folder, unless a command is told otherwise."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("results")
FETCHED = Path("resources/models")
CONFIG = Path("config/config.yaml")
REGISTRY = Path("config/models.yaml")
CLUSTER = Path("config/cluster.yaml")
SCHEMAS = Path("workflow/schemas")
REGISTRY_SCHEMA = SCHEMAS / "models.schema.yaml"
RECORDINGS = Path("recordings")
"""Of `outlier-moe record`, which knows no study."""
