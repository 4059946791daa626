"""Test dense models against MoE models, and every figure for a jump."""

import polars as pl

from outlier_moe.reporting import reporting_to
from outlier_moe.statistics.study_tests import tests_of_study

with reporting_to(snakemake.log[0], snakemake):
    models, resamples = pl.read_parquet(snakemake.input.models), pl.read_parquet(snakemake.input.resamples)
    tables = tests_of_study(models, resamples, presets=snakemake.params.presets, seed=snakemake.params.seed)
    for name, table in tables._asdict().items():
        table.write_parquet(snakemake.output[name])
