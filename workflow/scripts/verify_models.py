"""Hold every model against what others published of it, and look at its experts."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.statistics.study_checks import CheckedModel, checks_of_study
    from outlier_moe.tables.files import read_table, write_table

with reporting_to(snakemake.log[0], snakemake):
    params = snakemake.params
    outliers = map(Path, snakemake.input.outliers)
    rows = zip(params.models, outliers, params.revisions, params.copies, params.published, strict=True)
    tables = checks_of_study(
        [CheckedModel(*row) for row in rows],
        read_table(snakemake.input.features),
        presets=params.presets,
        magnitude=params.magnitude,
        seed=params.seed,
        left_out=read_table(snakemake.input.left_out)["model"].to_list(),
    )
    for name, table in tables._asdict().items():
        write_table(table, snakemake.output[name])
