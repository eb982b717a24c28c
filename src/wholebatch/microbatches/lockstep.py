"""``lockstep``: a model on parts of a mini-batch, exact as on the undivided one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from wholebatch.conversion import convert as convert_model
from wholebatch.layers import WholeBatchNorm
from wholebatch.microbatches.conductor import conduct
from wholebatch.microbatches.offload import Offload, store_maker


def lockstep(
    model: Callable[..., Any], parts: Iterable[Any], *, offload: Offload = "none", convert: bool = False
) -> list[Any]:
    """``[model(part) for part in parts]``, with the batch norms of the mini-batch that the parts make up together.

    ::

        outputs = wholebatch.lockstep(model, x.chunk(8))
        loss = sum(criterion(output, target) for output, target in zip(outputs, targets)) / 8
        loss.backward()

    Outputs, gradients and running statistics are those of the undivided mini-batch, within rounding: at each batch norm
    in training mode the parts wait for each other, forward and backward, and running statistics move once. If the
    layers share the mini-batch with other processes, it is all ranks' parts; their numbers may differ.

    One ``backward`` serves all parts; an output that takes no part in the loss counts as one with a gradient of zero.
    What lockstep computed can be differentiated once.

    Random numbers: part ``p`` draws what it would after ``torch.manual_seed(seed + p)``, with one ``seed`` drawn by
    ``torch.randint(2**62, ())`` at the beginning, so a dropout's mask depends on no other part.

    A checkpoint inside needs ``use_reentrant=False, context_fn=wholebatch.replay``. Of a model under torch.compile,
    what is between the batch norms is compiled; so ``fullgraph=True`` cannot be.

    Args:
        model: a module, or another function, called once for each part.
        parts: each a tensor or another single input, a tuple of inputs, or a dict of them by keyword. They may have
            different numbers of rows, also 0.
        offload: where tensors are that wait, see the page on lockstep: ``"none"`` leaves them, ``"cpu"`` puts them in
            host memory, ``"recompute"`` forms them again in backward.
        convert: change the model's batch norms into wholebatch's before, in place, see :func:`wholebatch.convert`.

    Returns:
        What the model returned, in the order of the parts.

    Raises:
        LockstepError: the parts do not pass the same batch norms in the same order; it lists where each stands.
        TypeError: a batch norm of another library would normalise each part by itself: it is named.
        ValueError: no parts, an unknown ``offload``, one value per channel in the whole mini-batch, or a checkpoint
            around batch norms that would recompute them alone.
        RuntimeError: inside of a part.

    Whatever a part raises is raised here, after the others were unwound and running statistics brought back.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("there are no parts; lockstep takes at least 1")
    make_store = store_maker(offload, model, parts)
    with known_batch_norms(model, convert), conduct([bind(model, part) for part in parts], make_store) as outputs:
        return outputs


def bind(model: Callable[..., Any], part: Any) -> Callable[[], Any]:
    """The call of the model on one part."""
    if isinstance(part, tuple):
        return functools.partial(model, *part)
    if isinstance(part, Mapping):
        return functools.partial(model, **part)
    return functools.partial(model, part)


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
