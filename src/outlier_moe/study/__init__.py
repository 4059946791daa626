"""A study's configuration and its experiments."""
