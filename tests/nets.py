"""Nets that are not ours, as people write them: a ResNet-18 in small, and one of the transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut; one ReLU module that is called twice, as in torchvision."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet18(nn.Module):
    """The 20 convolutions and batch norms of ResNet-18, ``width`` channels at first (64 in the original)."""

    def __init__(self, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            stages.append(nn.Sequential(Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.fc(torch.flatten(self.pool(self.stages(x)), 1))
        return result


class Branching(nn.Module):
    """A forward that torch.fx cannot trace, around parts that it can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            raise ValueError("no examples")
        x = self.body(x)
        return self.norm(self.head(x.mean((2, 3)))) if x.sum() != 0 else x


def transformers_resnet(layer: str = "basic") -> nn.Module:
    """A small ResNet of the transformers library, with random weights."""
    import pytest

    transformers: Any = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3, embedding_size=4, hidden_sizes=[4, 8], depths=[2, 2], layer_type=layer, num_labels=3
    )
    model: nn.Module = transformers.ResNetForImageClassification(config)
    return model


def images(n: int = 6, size: int = 32, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Far from mean 0 and std 1, and different by channel and by example."""
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x * torch.tensor([0.5, 1, 3], dtype=dtype).view(3, 1, 1) + torch.linspace(-2, 3, n).to(dtype).view(
        n, 1, 1, 1
    )


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm weights, biases and statistics of its own: with 1, 0, 0 and 1 mistakes do not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -1, 1),
                    (module.running_mean, -1, 1),
                    (module.running_var, 0.5, 2),
                ):
                    if tensor is not None:
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """The output as a tensor, also of a model of the transformers library."""
    y = model(x)
    result: Tensor = y if isinstance(y, Tensor) else y.logits
    return result


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of a weighted sum of squares in parameters and input."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    y = logits(model, x)
    weights = torch.linspace(1, 2, y.numel(), dtype=y.dtype).view_as(y)
    (y.square() * weights).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return y.detach(), {**found, "input": x.grad}
