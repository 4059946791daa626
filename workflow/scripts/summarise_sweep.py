"""Put the runs of a sweep together, and print what each scale and optimiser came to."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.scale_sweep.figures import SweptRun
from outlier_moe.scale_sweep.summary import summarise_sweep
from outlier_moe.scale_sweep.terminal_table import show_summary
from outlier_moe.tables.files import write_table

with reporting_to(snakemake.log[0], snakemake):
    files = zip(snakemake.params.runs, snakemake.input.runs, snakemake.input.metrics, strict=True)
    tables = summarise_sweep([SweptRun(*run, Path(folder), Path(metrics)) for run, folder, metrics in files])
    for name, table in tables._asdict().items():
        write_table(table, snakemake.output[name])
    Path(snakemake.output.document).write_text(tables.summary.write_json())
    show_summary(tables.summary, output_format="table", title=snakemake.wildcards.sweep)
