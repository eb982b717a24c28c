"""Measurements of wholebatch and its peers, run from the checkout: ``python -m benchmarks --help``."""
