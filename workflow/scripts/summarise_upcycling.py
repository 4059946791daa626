"""Put the runs of the upcycling experiment together, and print what each arm came to."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.tables.files import write_table
from outlier_moe.terminal.presentation import show_frame
from outlier_moe.upcycling.summary import TABLE, RunFiles, for_terminal, summarise_upcycling

with reporting_to(snakemake.log[0], snakemake):
    proofs = iter(snakemake.input.proofs)
    columns = [snakemake.input[name] for name in ("dense_runs", "arm_runs", "dense_outliers", "arm_outliers")]
    runs = [
        RunFiles(*run, *map(Path, paths), equivalence=None if run[2] == "dense" else Path(next(proofs)))
        for run, *paths in zip(snakemake.params.runs, *columns, strict=True)
    ]
    tables = summarise_upcycling(runs, preset=snakemake.params.preset)
    for name, table in tables._asdict().items():
        write_table(table, snakemake.output[name])
    Path(snakemake.output.document).write_text(tables.summary.write_json())
    show_frame(for_terminal(tables.summary), TABLE, output_format="table", title="dense -> MoE")
