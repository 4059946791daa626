"""Fetch a text, cut to its number of characters."""

from pathlib import Path

from outlier_moe.config.registry import load_registry
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.sources.corpora import fetch_corpus

with reporting_to(snakemake.log[0], snakemake):
    registry = load_registry(Path("config/models.yaml"), Path("workflow/schemas/models.schema.yaml"))
    fetch_corpus(registry.corpus(snakemake.wildcards.corpus), Path(snakemake.output.corpus))
