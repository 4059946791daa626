"""Fetch a model's configuration and tokenizer, and its weights where they do not come from a hub."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    # Imports torch and transformers, which every fetched model is looked at with.
    import outlier_moe.architectures.model_class  # noqa: F401
    from outlier_moe.config.registry import load_registry
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.sources.models import fetch_model

with reporting_to(snakemake.log[0], snakemake):
    registry = load_registry(Path("config/models.yaml"), Path("workflow/schemas/models.schema.yaml"))
    fetch_model(registry.model(snakemake.wildcards.model), Path(snakemake.output.model))
