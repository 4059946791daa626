"""The sweep over optimisers and scales: image classifiers and small language models, measured while they train."""
