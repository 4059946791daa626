"""Put the recordings of all parts of a study together."""

from pathlib import Path

from outlier_moe.machine.stage_log import reporting_to
from outlier_moe.recording.kept_recordings import KeptRecordings
from outlier_moe.recording.shard_merging import merge_shards

with reporting_to(snakemake.log[0], snakemake):
    merge_shards(
        [Path(shard) for shard in snakemake.input.shards],
        Path(snakemake.output.outliers),
        kept=KeptRecordings(Path("results", snakemake.wildcards.model, "recordings")),
    )
