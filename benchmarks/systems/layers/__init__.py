"""The systems whose single layers are measured, one module each, as in :mod:`benchmarks.systems`."""
