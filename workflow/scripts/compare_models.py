"""Put the models of the study side by side."""

from pathlib import Path

from outlier_moe.comparison import ComparedModel, compare_models
from outlier_moe.filtering import presets
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0]):
    rows = zip(snakemake.params.facts, snakemake.input.outliers, snakemake.input.systematic, strict=True)
    models = [ComparedModel(facts, Path(outliers), Path(systematic)) for facts, outliers, systematic in rows]
    compare_models(models, presets(snakemake.config)).write_parquet(snakemake.output.models)
