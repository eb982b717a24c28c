"""The single layers that are measured on a GPU: those of ResNet-50, a wide and a tall ``(N, C)``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.layer_cases import CHANNELS_LAST, DTYPES, PLANES, ROWS, Case

if TYPE_CHECKING:
    import torch

# Channels and the side of the planes, stage by stage, with the stem first.
RESNET_50 = (
    *((64, 112), (64, 56), (256, 56), (128, 56), (128, 28), (512, 28)),
    *((256, 28), (256, 14), (1024, 14), (512, 14), (512, 7), (2048, 7)),
)
# By the name on the command line.
SHAPES: dict[str, tuple[tuple[int, ...], str]] = {
    "8192x512": ((8192, 512), ROWS),
    "65536x64": ((65536, 64), ROWS),
    **{
        f"{batch}x{channels}x{side}x{side}": ((batch, channels, side, side), CHANNELS_LAST)
        for batch in (64, 256)
        for channels, side in RESNET_50
    },
}
# Inputs, outputs and their gradients of a stack: several times the second-level cache of any card so far (50 MiB on an
# H100), so that a backward pass meets its input as cold as in a net.
STACK_BYTES = 1 << 30
FEWEST, MOST = 2, 32


@dataclass(frozen=True)
class GpuCase(Case):
    """A layer on a device; ``planes`` has contiguous ``(N, C, H, W)`` in place of channels last."""

    device: str = "cuda"
    planes: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPES[self.name][0]

    @property
    def layout(self) -> str:
        layout = SHAPES[self.name][1]
        return PLANES if self.planes and layout == CHANNELS_LAST else layout

    @property
    def layers(self) -> int:
        return max(FEWEST, min(MOST, STACK_BYTES // (4 * self.tensor_bytes)))

    @property
    def memory_bound(self) -> bool:
        """Whether its stack is larger than any cache."""
        return 4 * self.tensor_bytes * self.layers >= STACK_BYTES // 2

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {self.layout}, {self.norm}"

    def make_tensors(self, seed: int) -> list[torch.Tensor]:
        import torch

        form = torch.channels_last if self.layout == CHANNELS_LAST else torch.contiguous_format
        generator = torch.Generator(self.device).manual_seed(seed)
        dtype = getattr(torch, self.dtype)
        return [
            torch.empty(self.shape, dtype=dtype, device=self.device, memory_format=form).normal_(generator=generator)
            for _ in range(self.layers)
        ]


def cases(
    shapes: tuple[str, ...], dtypes: tuple[str, ...], norms: tuple[str, ...], device: str, planes: bool
) -> Iterator[GpuCase]:
    """All that were asked for, one after the other."""
    for name in shapes:
        for dtype in dtypes:
            for norm in norms:
                yield GpuCase(name, dtype, norm, 1, device, planes)


__all__ = ["DTYPES", "SHAPES", "GpuCase", "cases"]
