"""The engine's layers and stages in words."""

from __future__ import annotations

from collections.abc import Sequence

from wholebatch.cost.timeline.record import Kind, Manner, Phase, Settings
from wholebatch.feedforward.recording import Doing, Stage

KINDS: dict[Doing, Kind] = {
    Doing.COMPUTE: "compute",
    Doing.MERGE: "merge",
    Doing.INJECTED: "injected",
    Doing.EXCHANGE: "merge",
    Doing.RANKS: "wait",
    Doing.SPINNING: "wait",
    Doing.YIELDING: "wait",
    Doing.PARKED: "wait",
    Doing.WAKING: "wait",
}
MANNERS: dict[Doing, Manner] = {
    Doing.SPINNING: "spinning",
    Doing.YIELDING: "yielding",
    Doing.PARKED: "parked",
    Doing.WAKING: "waking",
}
PHASES: dict[Stage, Phase] = {
    Stage.FORWARD: "forward",
    Stage.ROWS: "forward",
    Stage.LOSS: "loss",
    Stage.BACKWARD: "backward",
    Stage.GRADIENT: "backward",
    Stage.NORM: "update",
    Stage.CLIP: "update",
    Stage.UPDATE: "update",
    Stage.EXCHANGE: "update",
}


def layer_name(layer: int, sizes: Sequence[int]) -> str:
    """``layer``, from 0, -1 for none; ``sizes``: those of the net, input and output included."""
    if layer < 0:
        return "whole net"
    return "output layer" if layer == len(sizes) - 2 else f"hidden layer {layer + 1}"


def purpose(stage: Stage, settings: Settings) -> str:
    """What everyone needs from everyone at a meeting."""
    batch = settings.norm == "batch"
    return {
        Stage.FORWARD: "moments of the mini-batch" if batch else "sums: each thread has columns of them",
        Stage.ROWS: "mean and variance of each row",
        Stage.LOSS: "gradient of the outputs",
        Stage.BACKWARD: "sums of g and g x̂ over the mini-batch" if batch else "gradient of the layer's output",
        Stage.GRADIENT: "gradient of the layer's sums",
        Stage.NORM: "norm of the gradient",
        Stage.CLIP: "that everyone has read the gradient",
        Stage.UPDATE: "updated weights",
        Stage.EXCHANGE: "the ranks' parts of the gradients",
    }[stage]
