"""The estimator's arrays and the torch net, on the same memory.

scikit-learn's attributes are the truth: people read them, pickle them and now and then write to them. So the net is
built over them, without a copy: ``coefs_[i]`` is the transposed view of a torch weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Architecture

NORM_ARRAYS = ("norm_weights_", "norm_biases_", "running_means_", "running_vars_")
ARRAYS = ("coefs_", "intercepts_", *NORM_ARRAYS)


def make_norm_arrays(estimator: Any, architecture: Architecture, dtype: Any) -> None:
    """Set the norm's attributes as torch initialises them: gamma 1, beta 0, running mean 0, running variance 1."""
    has_norm = architecture.norm != "none"
    present = {
        "norm_weights_": has_norm,
        "norm_biases_": has_norm and architecture.norm != "rms",
        "running_means_": architecture.norm == "batch",
        "running_vars_": architecture.norm == "batch",
    }
    for name, fill in zip(NORM_ARRAYS, (1, 0, 0, 1), strict=True):
        sizes = architecture.hidden_layer_sizes if present[name] else ()
        setattr(estimator, name, [np.full(size, fill, dtype) for size in sizes])
    estimator._batches_tracked = 0


def cast(estimator: Any, dtype: Any) -> None:
    """Bring every array to ``dtype``."""
    for name in ARRAYS:
        setattr(estimator, name, [array.astype(dtype, copy=False) for array in getattr(estimator, name)])


def arrays_of(estimator: Any) -> list[np.ndarray]:
    """All of the estimator's arrays, in a fixed order."""
    return [array for name in ARRAYS for array in getattr(estimator, name)]


def places(net: FeedForward) -> Iterator[tuple[str, str, int]]:
    """(name in the net's ``state_dict``, attribute, index in it) of every tensor that the estimator keeps."""
    for index, part in enumerate(net.parts()):
        yield f"{part.linear_name}.weight", "coefs_", index
        if part.linear.bias is not None:
            yield f"{part.linear_name}.bias", "intercepts_", index
        if part.norm is not None:
            yield f"{part.norm_name}.weight", "norm_weights_", index
            if not isinstance(part.norm, nn.RMSNorm):
                yield f"{part.norm_name}.bias", "norm_biases_", index
        if isinstance(part.norm, nn.BatchNorm1d):
            yield f"{part.norm_name}.running_mean", "running_means_", index
            yield f"{part.norm_name}.running_var", "running_vars_", index


def torch_dtype(dtype: Any) -> torch.dtype:
    """torch's name of a NumPy dtype."""
    return torch.from_numpy(np.empty(0, dtype)).dtype


def bind(estimator: Any, architecture: Architecture) -> FeedForward:
    """A net on the memory of the estimator's arrays; one that torch cannot use as it lies is replaced by a copy."""
    dtype = estimator.coefs_[0].dtype
    # On the meta device no memory is filled and no random number is drawn for parameters that are replaced at once.
    net = FeedForward.of(architecture, device="meta", dtype=torch_dtype(dtype))
    state = {}
    for name, attribute, index in places(net):
        arrays = getattr(estimator, attribute)
        as_torch = np.require(arrays[index].T, dtype, ["C", "ALIGNED", "WRITEABLE"])
        if not np.shares_memory(as_torch, arrays[index]):
            arrays[index] = as_torch.T
        state[name] = torch.from_numpy(as_torch)
    for name, _ in net.named_buffers():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(estimator._batches_tracked)
    net.load_state_dict(state, assign=True)
    return net.eval()
