"""A small problem for the tests of training: a table, three classes that a net can learn, and a net of known values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from oracle import make_model
from wholebatch import FeedForward

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 6))
Y = (X @ RNG.standard_normal((6, 3))).argmax(1)


def net(**more: Any) -> FeedForward:
    return make_model((6, 17, 3), "batch", "before", "tanh", dtype=torch.float64, **more)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def copy_of(model: FeedForward) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
