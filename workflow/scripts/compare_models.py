"""Put the models of the study side by side."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.presets import Preset, definition_facts
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.statistics.comparison import compare_models, judged_models
    from outlier_moe.tables.files import write_table

with reporting_to(snakemake.log[0], snakemake):
    presets = [Preset(**preset) for preset in snakemake.params.presets]
    paths = map(Path, snakemake.input.outliers), map(Path, snakemake.input.counts)
    judged = judged_models(zip(snakemake.params.facts, *paths, strict=True), presets)
    for name, table in compare_models(judged.models, presets, unjudged=judged.left_out)._asdict().items():
        write_table(table, snakemake.output[name], definition_facts(presets))
