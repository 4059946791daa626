"""Draw all models side by side."""

from pathlib import Path

from outlier_moe.definitions.presets import presets
from outlier_moe.judging.edge_counts import read_edge_counts
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots.gallery import comparison_charts, save_charts
from outlier_moe.plots.thresholds import threshold_curves
from outlier_moe.tables.files import read_table

with reporting_to(snakemake.log[0], snakemake):
    preset = next(preset for preset in presets(snakemake.config) if preset.name == snakemake.params.preset)
    charts = comparison_charts(
        read_table(snakemake.input.models),
        preset=preset,
        intervals=read_table(snakemake.input.intervals),
        curves={
            model: threshold_curves(read_edge_counts(Path(path)), [preset])
            for model, path in zip(snakemake.params.models, snakemake.input.edge_counts, strict=True)
        },
    )
    save_charts(charts, snakemake.output, vega_bundle=Path(snakemake.input.vega).read_text())
