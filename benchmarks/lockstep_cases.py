"""The steps that are measured of micro-batches: which net, how many examples, in how many parts, and which way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.problem import Sent

if TYPE_CHECKING:
    from torch import Tensor, nn

Net = Literal["conv", "mlp"]
# Examples of the undivided mini-batch. On one core of 2 GHz a 32nd of the convolutional net's takes more than 5 ms,
# below which a part is as much overhead as work.
ROWS: dict[Net, int] = {"conv": 256, "mlp": 1024}
SHAPES: dict[Net, tuple[int, ...]] = {"conv": (3, 16, 16), "mlp": (256,)}  # of an example
WIDTHS: dict[Net, int] = {"conv": 32, "mlp": 512}
DEPTHS: dict[Net, int] = {"conv": 8, "mlp": 6}  # layers with a batch norm
CLASSES = 10
BLOCK = 2  # such layers between two checkpoints: of 8 layers about the square root

UNDIVIDED, PLAIN, CHECKPOINT = "undivided", "plain", "checkpoint"
MODES = ("none", "cpu", "recompute")
TORCH = "-torch"
# Peers by the layers that they use: PyTorch's and, so that the way alone is compared, ours.
PEERS = tuple(way + layers for way in (UNDIVIDED, PLAIN, CHECKPOINT) for layers in (TORCH, ""))
SYSTEMS = (*MODES, *PEERS)


@dataclass(frozen=True)
class Case(Sent):
    """One step.

    Attributes:
        net: ``conv`` or ``mlp``.
        system: one of :data:`SYSTEMS`.
        rows: examples of the whole mini-batch.
        parts: micro-batches; 1 where the way is undivided.
        threads: of the process.
    """

    net: Net
    system: str
    rows: int
    parts: int
    threads: int

    @property
    def way(self) -> str:
        """``undivided``, ``plain``, ``checkpoint``, or one of :data:`MODES`."""
        return self.system.removesuffix(TORCH)

    @property
    def divided(self) -> bool:
        """Whether there are parts."""
        return self.way not in (UNDIVIDED, CHECKPOINT)

    @property
    def activation_bytes(self) -> int:
        """Bytes of one layer's output over the whole mini-batch, the unit that peaks are told in."""
        positions = 1
        for size in SHAPES[self.net][1:]:
            positions *= size
        return 4 * self.rows * WIDTHS[self.net] * positions

    def make_net(self) -> nn.ModuleList:
        """Blocks of :data:`BLOCK` layers, and the head, to be called one after the other; seeded."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        make = _make_conv if self.net == "conv" else _make_linear
        width, depth = WIDTHS[self.net], DEPTHS[self.net]
        sizes = [SHAPES[self.net][0]] + [width] * depth
        blocks = [
            nn.Sequential(*(layer for i in range(start, start + BLOCK) for layer in make(sizes[i], width, self.system)))
            for start in range(0, depth, BLOCK)
        ]
        pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if self.net == "conv" else []
        return nn.ModuleList([*blocks, nn.Sequential(*pool, nn.Linear(width, CLASSES))])

    def make_data(self) -> tuple[Tensor, Tensor]:
        """Standard normal examples and their classes; seeded."""
        import torch

        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.rows, *SHAPES[self.net], generator=generator)
        return x, torch.randint(CLASSES, (self.rows,), generator=generator)


def _make_conv(before: int, width: int, system: str) -> list[nn.Module]:
    from torch import nn

    import wholebatch

    conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
    return [conv, *_norm(nn.BatchNorm2d, wholebatch.BatchNorm2d, width, system)]


def _make_linear(before: int, width: int, system: str) -> list[nn.Module]:
    from torch import nn

    import wholebatch

    linear = nn.Linear(before, width, bias=False)
    return [linear, *_norm(nn.BatchNorm1d, wholebatch.BatchNorm1d, width, system)]


def _norm(theirs: Callable[..., nn.Module], ours: Callable[..., nn.Module], width: int, system: str) -> list[nn.Module]:
    """Batch norm and ReLU: PyTorch's with the ReLU in place, or ours, which takes it in."""
    from torch import nn

    return [theirs(width), nn.ReLU(inplace=True)] if system.endswith(TORCH) else [ours(width, activation="relu")]
