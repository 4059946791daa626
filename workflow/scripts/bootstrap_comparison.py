"""Take the intervals of every figure, and of the differences of models, from resampled sequences."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.presets import Preset, definition_facts
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.statistics.bootstrap import BootstrapOptions
    from outlier_moe.statistics.study_bootstrap import StudyFiles, bootstrap_study
    from outlier_moe.tables.files import write_table

with reporting_to(snakemake.log[0], snakemake):
    presets = [Preset(**preset) for preset in snakemake.params.presets]
    options = dict(snakemake.params.options)
    paths = zip(map(Path, snakemake.input.outliers), map(Path, snakemake.input.counts), strict=True)
    tables = bootstrap_study(
        dict(zip(snakemake.params.models, (StudyFiles(*files) for files in paths), strict=True)),
        presets,
        closely=snakemake.params.closely,
        confidence_level=options.pop("confidence_level"),
        options=BootstrapOptions(**options),
        kept=Path("resources/resamples"),
    )
    for name, table in tables._asdict().items():
        write_table(table, snakemake.output[name], definition_facts(presets))
