"""Recording: from a model's activations to the tables of outliers."""
