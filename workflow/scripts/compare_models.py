"""Put the models of the study side by side."""

from pathlib import Path

from outlier_moe.comparison import compare_models, judged_model
from outlier_moe.presets import Preset
from outlier_moe.reporting import reporting_to

with reporting_to(snakemake.log[0]):
    presets = [Preset(**preset) for preset in snakemake.params.presets]
    rows = zip(snakemake.params.facts, snakemake.input.outliers, snakemake.input.counts, strict=True)
    models = [judged_model(facts, Path(outliers), Path(counts), presets) for facts, outliers, counts in rows]
    for name, table in compare_models(models, presets)._asdict().items():
        table.write_parquet(snakemake.output[name])
