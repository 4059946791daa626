"""Measure outlier features in dense and Mixture-of-Experts transformers, from 0.1B to 1T parameters."""

__version__ = "0.1.0"
