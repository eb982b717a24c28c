"""The model that goes on parts: what is called for each, and whether it can."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from wholebatch.conversion import convert as convert_model
from wholebatch.layers import WholeBatchNorm


def bind(model: Callable[..., Any], parts: Sequence[Any]) -> list[Callable[[], Any]]:
    """The call of the model for each part."""
    models = [model] * len(parts)
    if isinstance(model, DistributedDataParallel):
        models[1:] = [functools.partial(_call_without_sync, model)] * (len(parts) - 1)
    calls: list[Callable[[], Any]] = []
    for callee, part in zip(models, parts, strict=True):
        if isinstance(part, tuple):
            calls.append(functools.partial(callee, *part))
        elif isinstance(part, Mapping):
            calls.append(functools.partial(callee, **part))
        else:
            calls.append(functools.partial(callee, part))
    return calls


def _call_without_sync(model: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
    """It sends rank 0's buffers in each call: in the first part's for all, or ranks would need as many parts each."""
    model.require_forward_param_sync = False  # the call sets it again at its end
    return model(*args, **kwargs)


@contextmanager
def known_batch_norms(model: Callable[..., Any], convert: bool = False) -> Iterator[None]:
    """Context in which every batch norm in training mode is ours: converted where that is wanted, refused otherwise.

    What a function calls is not known before: it is looked at when it is called.
    """
    if not isinstance(model, nn.Module):
        if convert:
            raise TypeError(f"convert=True takes a torch.nn.Module, and model is a {type(model).__name__}")
        with register_module_forward_pre_hook(_refuse_stranger):
            yield
        return
    if convert:
        convert_model(model)
    if any("FSDP" in cls.__name__ for module in model.modules() for cls in type(module).__mro__):
        raise TypeError(
            "the model is under FSDP, which frees a layer's parameters as soon as one part has passed it, and others "
            "may stand in the middle of it: use DistributedDataParallel, or offload='cpu'"
        )
    _refuse(
        [
            f"{name or 'the model'} ({type(module).__name__})"
            for name, module in model.named_modules()
            if _strange(module)
        ]
    )
    yield


def _refuse_stranger(module: nn.Module, inputs: Any) -> None:
    if _strange(module):
        _refuse([str(module)])


def _strange(module: nn.Module) -> bool:
    return (
        isinstance(module, _BatchNorm)
        and not isinstance(module, WholeBatchNorm)
        and (module.training or module.running_mean is None)
    )


def _refuse(strangers: Sequence[str]) -> None:
    if strangers:
        raise TypeError(
            f"{len(strangers)} batch norms are not wholebatch's, and would normalise each part by itself: "
            f"{', '.join(strangers)}; pass convert=True, or wholebatch.convert(model) before. Those of a class that "
            "wholebatch does not know have to be replaced by hand"
        )
