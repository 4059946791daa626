"""Draw one model's layers, features, positions and thresholds."""

from pathlib import Path

from outlier_moe.definitions.presets import presets
from outlier_moe.judging.edge_counts import read_edge_counts
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.plots.gallery import model_charts, save_charts
from outlier_moe.plots.thresholds import threshold_curves
from outlier_moe.tables.files import read_table
from outlier_moe.tables.recording import read_recording

with reporting_to(snakemake.log[0], snakemake):
    chosen = presets(snakemake.config)
    charts = model_charts(
        read_recording(Path(snakemake.input.outliers)),
        features=read_table(snakemake.input.systematic).filter("is_systematic"),
        layer_peaks=read_table(snakemake.input.layer_peaks),
        curves=threshold_curves(read_edge_counts(Path(snakemake.input.edge_counts)), chosen),
        preset=next(preset for preset in chosen if preset.name == snakemake.params.preset),
    )
    folder = Path(snakemake.output.plots)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for name in charts for kind in ("png", "svg", "html")]
    save_charts(charts, paths, vega_bundle=Path(snakemake.input.vega).read_text())
