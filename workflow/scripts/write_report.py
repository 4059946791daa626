"""Write the report."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.report.inputs import ModelFiles, ReportInputs
    from outlier_moe.report.page import write_report
    from outlier_moe.tables.files import read_table

with reporting_to(snakemake.log[0], snakemake):
    paths = [snakemake.input[name] for name in ("outliers", "edge_counts", "layer_peaks")]
    files = [ModelFiles(*map(Path, of_model)) for of_model in zip(*paths, strict=True)]
    inputs = ReportInputs(
        models=read_table(snakemake.input.models),
        features=read_table(snakemake.input.features),
        left_out=read_table(snakemake.input.left_out),
        files=dict(zip(snakemake.params.models, files, strict=True)),
        study=snakemake.config,
        statistics={Path(path).stem: read_table(path) for path in snakemake.input.statistics},
        upcycling={Path(path).stem: read_table(path) for path in snakemake.input.upcycling},
        sweeps={
            sweep: {Path(path).stem: read_table(path) for path in snakemake.input[sweep]}
            for sweep in snakemake.params.sweeps
        },
        skipped=snakemake.params.skipped,
        overrides=snakemake.params.overrides,
        configfiles=snakemake.params.configfiles,
    )
    write_report(inputs, Path(snakemake.output.page), vega_bundle=Path(snakemake.input.vega).read_text())
