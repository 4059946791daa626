# Count each recording at every edge of the ladder, once. Later stages need nothing else for their thresholds: a changed
# threshold reads another edge of these tables, and not the recording.
#
# INPUTS   results/{model}/outliers/
# OUTPUTS  results/{model}/sequence_counts/   what each sequence counts, from which features are judged and resampled
#          results/{model}/edge_counts.json   what the report's sliders work on
#          results/{model}/layer_peaks.parquet  each feature's peak by tap and layer


localrules:
    count_at_edges,


rule count_at_edges:
    input:
        outliers="results/{model}/outliers",
    output:
        edge_counts="results/{model}/edge_counts.json",
        sequence_counts=directory("results/{model}/sequence_counts"),
        layer_peaks="results/{model}/layer_peaks.parquet",
    log:
        "logs/count_at_edges/{model}.log",
    benchmark:
        "logs/benchmarks/count_at_edges/{model}.tsv"
    priority: 30
    params:
        shapes=sorted({shape.name for shape in map(shape_of, PRESETS) if shape}),
        massive=MASSIVE,
        least_layers=min(
            [LEAST_LAYER_FRACTION, *(preset.layer_fraction for preset in PRESETS)]
        ),
        least_positions=min(
            [
                LEAST_POSITION_FRACTION,
                *(preset.position_fraction for preset in PRESETS),
            ]
        ),
        revision=REVISIONS["count_at_edges"],
    message:
        "Counting at every edge of the ladder for {wildcards.model}"
    script:
        "../scripts/count_at_edges.py"
