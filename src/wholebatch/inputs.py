"""What :func:`wholebatch.functional.batch_norm` is given, checked before a compiled kernel reads any address."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor


def check_inputs(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mask: Tensor | None,
    residual: Tensor | None,
) -> Tensor | None:
    """Raise for what does not fit together; returns the mask with a channel dimension.

    Raises:
        ValueError: shapes that do not fit, a residual of another dtype, or tensors on different devices.
        TypeError: an input that is not floating, a mask that is not bool.
    """
    shape = input.shape
    if len(shape) < 2:
        raise ValueError(f"the input has {len(shape)} dimensions; batch_norm takes (N, C, *), at least 2")
    if not input.is_floating_point():
        raise TypeError(f"the input is {input.dtype}; batch_norm takes floating dtypes: convert it, say input.float()")
    channels = shape[1]
    on_cpu = input.is_cpu  # a third of the time that comparing devices takes: they are compared where this is False
    for vector in (weight, bias, running_mean, running_var):
        if vector is not None:
            if vector.shape != (channels,):
                named = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
                name = next(name for name, tensor in named.items() if tensor is vector)
                raise ValueError(
                    f"{name} has shape {tuple(vector.shape)}, and the input {tuple(shape)} has {channels} channels in "
                    f"dimension 1: it must be ({channels},)"
                )
            on_cpu = on_cpu and vector.is_cpu
    if residual is not None:
        if residual.shape != shape or residual.dtype != input.dtype:
            raise ValueError(
                f"the residual is {tuple(residual.shape)} {residual.dtype}; it must be as the input, {tuple(shape)} "
                f"{input.dtype}"
            )
        on_cpu = on_cpu and residual.is_cpu
    if mask is not None:
        mask = shape_mask(mask, input)
        on_cpu = on_cpu and mask.is_cpu
    if not on_cpu:
        _check_devices(
            input,
            weight=weight,
            bias=bias,
            running_mean=running_mean,
            running_var=running_var,
            mask=mask,
            residual=residual,
        )
    return mask


def shape_mask(mask: Tensor, input: Tensor) -> Tensor:
    """The mask with the input's number of dimensions: ``(N, 1, *)``, where * may be ones. Errors as above."""
    if mask.dtype != torch.bool:
        raise TypeError(f"the mask is {mask.dtype}; it must be bool, True where an element counts")
    shape = input.shape
    if mask.shape == shape[:1]:
        return mask.view(-1, *[1] * (len(shape) - 1))
    if mask.shape == (shape[0], *shape[2:]):
        return mask.unsqueeze(1)
    if mask.shape == (shape[0], 1, *shape[2:]) or mask.shape == (shape[0], *[1] * (len(shape) - 1)):
        return mask
    raise ValueError(
        f"the mask has shape {tuple(mask.shape)}; for an input {tuple(shape)} it must be {tuple(shape[:1])} "
        f"(examples), {(shape[0], *shape[2:])} or {(shape[0], 1, *shape[2:])} (positions)"
    )


def _check_devices(input: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != input.device:
            _refuse_device(name, other.device, input.device)


def _refuse_device(name: str, device: torch.device, wanted: torch.device) -> NoReturn:
    if device.type == "meta":
        remedy = (
            f"a meta tensor has no memory: give the model some by model.to_empty(device='{wanted}') and load its state"
        )
    else:
        remedy = f"move the model by model.to('{wanted}'), or the input by input.to('{device}')"
    raise ValueError(f"{name} is on {device} and the input on {wanted}: batch_norm takes both on one device; {remedy}")
