"""Batch norm on a GPU, in Triton. Nothing here imports Triton before a tensor on a GPU needs it."""

from wholebatch.kernels.gpu.finding import interpreted, serves, triton_available

__all__ = ["interpreted", "serves", "triton_available"]
