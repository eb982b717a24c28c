"""Batch normalization over the whole mini-batch, however it is split."""

from importlib.metadata import version

from wholebatch.feedforward import Architecture, FeedForward, Loss, Optimizer, Training

__version__ = version("wholebatch")
__all__ = ["Architecture", "FeedForward", "Loss", "Optimizer", "Training", "__version__"]
