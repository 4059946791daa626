"""Run a model over its tokens and count what reaches each magnitude."""

from pathlib import Path

from outlier_moe.machine.start_up import uncollected

with uncollected():
    from outlier_moe.definitions.record_options import RecordOptions
    from outlier_moe.definitions.sharding import Shard
    from outlier_moe.machine.stage_log import reporting_to
    from outlier_moe.recording.kept_recordings import KeptRecordings
    from outlier_moe.recording.record import record_outliers
    from outlier_moe.tables.contents import DigestMemo

with reporting_to(snakemake.log[0], snakemake):
    options = RecordOptions(
        taps=tuple(snakemake.params.taps),
        floor=snakemake.params.floor,
        n_peaks=snakemake.params.n_peaks,
        dtype=snakemake.params.dtype,
        device=snakemake.config["record_outliers"]["device"],
        mode=snakemake.config["record_outliers"]["mode"],
        chunk=snakemake.config["record_outliers"]["chunk"],
        evict=snakemake.config["record_outliers"]["evict"],
        shard=Shard(int(snakemake.wildcards.get("shard", 1)) - 1, int(snakemake.wildcards.get("n_shards", 1))),
    )
    record_outliers(
        Path(snakemake.input.model),
        Path(snakemake.input.tokens),
        Path(snakemake.output.outliers),
        options,
        kept=KeptRecordings(
            Path("results", snakemake.wildcards.model, "recordings"),
            revision=snakemake.params.revision,
            digests=DigestMemo(Path("resources/.digests.json")),
        ),
        # On the machine that sends recordings to nodes nothing is recorded.
        only_kept=snakemake.rule.startswith("take_up"),
    )
