"""Hold a recording against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.definitions.presets import definition_facts, presets
from outlier_moe.judging.filtering import systematic_features
from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.tables.files import write_table
from outlier_moe.tables.recording import read_recording

with reporting_to(snakemake.log[0], snakemake):
    recording = read_recording(Path(snakemake.input.outliers))
    chosen = presets(snakemake.params)
    facts = definition_facts(chosen) | recording.ladder.facts
    write_table(systematic_features(recording, chosen), snakemake.output.systematic, facts)
