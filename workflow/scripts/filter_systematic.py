"""Hold a recording against the definitions of an outlier feature."""

from pathlib import Path

from outlier_moe.filtering import systematic_features
from outlier_moe.presets import definition_facts, presets
from outlier_moe.recording_files import read_recording
from outlier_moe.reporting import reporting_to
from outlier_moe.table_files import write_table

with reporting_to(snakemake.log[0], snakemake):
    recording = read_recording(Path(snakemake.input.outliers))
    chosen = presets(snakemake.params)
    facts = definition_facts(chosen) | recording.ladder.facts
    write_table(systematic_features(recording, chosen), snakemake.output.systematic, facts)
