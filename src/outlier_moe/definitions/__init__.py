"""The ladder of magnitudes, taps and views, presets, shards, and what is recorded."""
