"""Test dense models against MoE models, and every figure for a jump."""

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.statistics.study_tests import tests_of_study
    from outlier_moe.tables.files import read_table, write_table

with reporting_to(snakemake.log[0], snakemake):
    models, resamples = read_table(snakemake.input.models), read_table(snakemake.input.resamples)
    tables = tests_of_study(models, resamples, presets=snakemake.params.presets, seed=snakemake.params.seed)
    for name, table in tables._asdict().items():
        write_table(table, snakemake.output[name])
