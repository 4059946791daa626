"""Commands of `outlier-moe` that fill a module of their own: each has `add_parser`, which says what to run."""
