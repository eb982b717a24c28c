"""The feed-forward net: what it is, its engines, and how it is trained."""

from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer
from wholebatch.feedforward.spread import Spread
from wholebatch.feedforward.training import History, State, Training

__all__ = [
    "Architecture",
    "FeedForward",
    "History",
    "Loss",
    "NonFiniteLossError",
    "Optimizer",
    "Spread",
    "State",
    "Training",
]
