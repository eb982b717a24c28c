"""Training products of rounded operands, by hand in float64: NumPy, without autograd, from the formulas.

:func:`gradients` is the mini-batch's way through a net of batch norm or none before a tanh, and back.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wholebatch import FeedForward

Array = np.ndarray


def rounded(x: Array) -> Array:
    """The nearest numbers of 8 significant bits, to even: bfloat16, where nothing overflows or is subnormal."""
    fraction, exponent = np.frexp(x)
    return np.ldexp(np.round(fraction * 2**8), exponent - 8)


def product(a: Array, b: Array, precision: str) -> Array:
    """``A B`` of rounded operands, summed in float64."""
    if precision == "highest":
        return a @ b
    a_high, b_high = rounded(a), rounded(b)
    if precision == "medium":
        return a_high @ b_high
    a_low, b_low = rounded(a - a_high), rounded(b - b_high)
    return a_high @ b_high + a_high @ b_low + a_low @ b_high


def gradients(
    model: FeedForward, x: Array, y: Array, precision: str
) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Cross-entropy, its gradients, and the means over the mini-batch of each batch norm's sums, by their names.

    Where batch norm stands after the first sums, the columns' means are taken from x before rounding, and added to the
    sums' means with weights that are not rounded.
    """
    a = model.architecture
    assert (a.activation, a.norm_position) == ("tanh", "before")
    assert a.norm in ("batch", "none")
    values = {name: tensor.numpy().astype(np.float64) for name, tensor in model.state_dict().items()}
    parts, rows = model.parts(), len(x)
    centre = x.mean(0) if a.waits else np.zeros(x.shape[1])
    h, inputs, kept, means = x - centre, [], [], {}
    for index, part in enumerate(parts[:-1]):
        weight = values[f"{part.linear_name}.weight"]
        inputs.append(h)
        z = product(h, weight.T, precision)
        xhat, rstd = z, np.ones(z.shape[1])
        if part.norm is not None:
            mean = z.mean(0)
            rstd = 1 / np.sqrt(((z - mean) ** 2).mean(0) + a.eps)
            xhat = (z - mean) * rstd
            means[part.norm_name] = torch.from_numpy(mean + (weight @ centre if index == 0 else 0))
            z = values[f"{part.norm_name}.weight"] * xhat + values[f"{part.norm_name}.bias"]
        else:
            z = z + values[f"{part.linear_name}.bias"]
        h = np.tanh(z)
        kept.append((xhat, rstd, h))
    last = parts[-1].linear_name
    out = product(h, values[f"{last}.weight"].T, precision) + values[f"{last}.bias"]
    logs = out - np.log(np.exp(out).sum(1, keepdims=True))
    loss = -logs[np.arange(rows), y].mean()

    dz = np.exp(logs)
    dz[np.arange(rows), y] -= 1
    dz /= rows
    found = {f"{last}.weight": product(dz.T, h, precision), f"{last}.bias": dz.sum(0)}
    for part, behind, h, (xhat, rstd, value) in zip(parts[-2::-1], parts[:0:-1], inputs[::-1], kept[::-1], strict=True):
        g = product(dz, values[f"{behind.linear_name}.weight"], precision) * (1 - value**2)
        if part.norm is not None:
            dbeta, dgamma = g.sum(0), (g * xhat).sum(0)
            found |= {f"{part.norm_name}.weight": dgamma, f"{part.norm_name}.bias": dbeta}
            dz = values[f"{part.norm_name}.weight"] * rstd * (g - dbeta / rows - xhat * dgamma / rows)
        else:
            dz = g
            found[f"{part.linear_name}.bias"] = g.sum(0)
        found[f"{part.linear_name}.weight"] = product(dz.T, h, precision)
    return float(loss), {name: torch.from_numpy(value) for name, value in found.items()}, means
