"""How the device engine goes through a net: in blocks of Linear and batch norm fused, or layer by layer; and why."""

from __future__ import annotations

import os
from typing import NamedTuple

from torch import Tensor, nn

from wholebatch.feedforward.settings import Architecture, MatmulPrecision
from wholebatch.kernels import gpu

# What a batch norm's kernels take along, by torch's module: the slope below 0.
SLOPES: dict[type[nn.Module], float] = {nn.ReLU: 0.0, nn.LeakyReLU: 0.01, nn.Identity: 1.0}
TAKEN_ALONG = ("relu", "leaky_relu", "identity")


class Plan(NamedTuple):
    """Attributes: ``fused``: in blocks; ``why``: what decided, in words."""

    fused: bool
    why: str


def plan_pass(a: Architecture, weight: Tensor, *, shards: int, weighted: bool, precision: MatmulPrecision) -> Plan:
    """Whether :mod:`wholebatch.feedforward.device.fused` serves.

    Where it serves it is taken: whether it is the faster way has not been measured. ``WHOLEBATCH_FUSED_BLOCKS=0`` in
    the environment goes layer by layer.

    Args:
        weight: the first weight matrix, which tells device and dtype.
        shards: of the whole mini-batch.
        weighted: sample weights weigh batch norm's moments.
    """
    reasons = {
        "WHOLEBATCH_FUSED_BLOCKS is 0": os.environ.get("WHOLEBATCH_FUSED_BLOCKS", "1") == "0",
        "there is no batch norm right behind the sums of a hidden layer": a.hidden_bias or not a.waits,
        f"the kernels do not take {a.activation} along": a.activation not in TAKEN_ALONG,
        "dropout needs each layer's output": a.dropout > 0,
        "running statistics average over all steps (momentum=None)": a.momentum is None,
        "sample weights weigh the moments": weighted,
        f"the mini-batch is in {shards} shards": shards > 1,
        f"matmul_precision is {precision!r}": precision != "highest",
    }
    for reason, holds in reasons.items():
        if holds:
            return Plan(False, reason)
    if not gpu.serves(weight):
        return Plan(False, f"Triton's kernels do not serve {weight.dtype} on {weight.device.type} here")
    return Plan(True, "batch norm behind each sum, and Triton serves it")
