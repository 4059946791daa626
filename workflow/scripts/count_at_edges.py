"""Count a recording at every edge of the ladder, as a whole and by sequence, and note its peaks layer by layer."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.presets import CountShape, Preset
    from outlier_moe.judging.count_recording import CountFiles, count_recording
    from outlier_moe.machine.stage_log import reporting_to

with reporting_to(snakemake.log[0], snakemake):
    count_recording(
        Path(snakemake.input.outliers),
        CountFiles(**{name: Path(path) for name, path in snakemake.output.items()}),
        shapes=[CountShape.named(name) for name in snakemake.params.shapes],
        massive=[Preset(**preset) for preset in snakemake.params.massive],
        least_layers=snakemake.params.least_layers,
        least_positions=snakemake.params.least_positions,
    )
