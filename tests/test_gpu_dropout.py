"""Dropout's kernel in Triton: the masks and the numbers of the other engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.gpu_kernels import DEVICE, quiet
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.kernels.gpu.dropping import drop

pytestmark = quiet


@pytest.mark.parametrize(
    ("rows", "columns", "layer", "step", "seed", "p", "first"),
    [
        (17, 70, 0, 3, 7, 0.3, 0),
        (1, 1, 2, 0, 2**64 - 1, 0.5, 9),
        (5, 64, 1, 2**32 + 1, 2**32 + 5, 0.0, 2**31),
        (33, 7, 5, 2**32 - 1, 0, 0.99, 40),
    ],
)
def test_masks_and_values_are_those_of_the_other_engines(
    rows: int, columns: int, layer: int, step: int, seed: int, p: float, first: int
) -> None:
    """The same bits as ``x * mask / (1 - p)`` in float32."""
    x = torch.randn((rows, columns), generator=torch.Generator().manual_seed(0)) + 3
    places = (torch.tensor(of, device=DEVICE) for of in (step, first))
    out = drop(x.to(DEVICE), layer, next(places), seed, p, next(places)).cpu()
    mask = torch.from_numpy(dropout_mask(rows, columns, layer, step, seed, p, first))
    assert torch.equal(out, x * mask / (1 - p))
    assert np.array_equal((out != 0).numpy(), mask.numpy())
