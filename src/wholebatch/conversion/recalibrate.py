"""``recalibrate``: exact running statistics of every batch norm over a whole data set.

Running statistics are an average over the last mini-batches, while the weights moved. The usual remedy averages the
variances of batches, which leaves out how their means differ. Here the moments of all batches, of all ranks, are merged
by Chan's formula: what is stored is the mean and the unbiased variance of all inputs together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from wholebatch.conversion.ranks import Ranks
from wholebatch.kernels.batch_norm import choose_kernel
from wholebatch.layers import WholeBatchNorm
from wholebatch.moments import Moments
from wholebatch.sharing import ProcessGroupLike

M = TypeVar("M", bound=nn.Module)
Forward = Callable[[nn.Module, Any], object]


class Seen:
    """The moments of what a layer's input was, in how many calls, and which layer it was in the order of calls."""

    def __init__(self, layer: _BatchNorm) -> None:
        zero = torch.zeros(layer.num_features, dtype=torch.float64)
        self.moments, self.calls, self.place = Moments(0, zero, zero), 0, 0

    def add(self, z: Tensor, mask: Tensor | None) -> None:
        if mask is not None and mask.dim() < z.dim():
            mask = mask.view(-1, *[1] * (z.dim() - 1)) if mask.dim() == 1 else mask.unsqueeze(1)
        # A mean in float32 is as coarse as its inputs are far from zero, and merging would see that: a second look.
        near = choose_kernel(z, mask).moments(z, mask).mean
        z = z.to(near.dtype) - near.view(-1, *[1] * (z.dim() - 2))
        found = choose_kernel(z, mask).moments(z, mask)
        mean = near.to("cpu", torch.float64) + found.mean.to("cpu", torch.float64)
        self.moments = self.moments.merge(Moments(found.count, mean, found.m2.to("cpu", torch.float64)))
        self.calls += 1


def recalibrate(
    model: M,
    loader: Iterable[Any],
    process_group: ProcessGroupLike = None,
    *,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    layer_by_layer: bool = False,
) -> M:
    """Set the running mean and (unbiased) variance of every batch norm to those of its inputs over all of ``loader``.

    The model runs as in evaluation (dropout off, no gradients), but for its batch norms: they normalise by their
    batch's own statistics, this rank's, as they do in training. One pass serves all layers. It gives what training
    with batches of this size sees. In evaluation a layer's input is not quite that, for the layers before it then use
    their running statistics. With ``layer_by_layer`` one pass per layer, each with the layers before it as they are in
    evaluation, gives exactly what evaluation sees: over ``loader``, evaluated, every batch norm's input then
    has the stored mean and variance. (A layer that is called several times in one forward is measured over all its
    calls; what its own output changes in its later inputs is not followed.)

    Works for torch.nn's layers and wholebatch's (whose ``mask`` is heeded), inside of DistributedDataParallel too.
    ``num_batches_tracked`` becomes the number of calls that were counted, on the rank with the most. ``momentum``,
    training flags and everything else are as before; after an error, the statistics too.

    Args:
        model: any module.
        loader: gives batches: a tensor, a tuple or list whose first element is the input, or a mapping of the model's
            arguments by name. ``layer_by_layer`` goes over it once per layer.
        process_group: merge with the ranks of this group (``"world"``: all). Each goes over its own loader; their
            lengths may differ, and be 0. None: this process alone.
        device: move the batches' tensors there first.
        forward: called as ``forward(model, batch)``, for models that take their batches otherwise.
        layer_by_layer: one pass per batch norm, see above.

    Returns:
        ``model``.

    Raises:
        ValueError: no batch at all; fewer than two values per channel, in the data or (in one pass) in a batch; inputs
            that are not finite; a loader that can be gone over only once where ``layer_by_layer`` must do so again; a
            lazy layer that has seen no input yet.
        TypeError: a ``loader`` that gives no batches.
        RuntimeError: another rank failed. Every rank raises.

    Warns:
        UserWarning: names layers that were not called. Their statistics stay.
    """
    layers = {
        module: name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }
    lazy = [name for layer, name in layers.items() if isinstance(layer.running_mean, nn.UninitializedBuffer)]
    if lazy:
        raise ValueError(f"batch norm {lazy[0]} is lazy and has seen no input yet: call the model once before")
    if layer_by_layer and isinstance(loader, Iterator):
        raise ValueError(
            "layer_by_layer goes over the loader once per layer, and an iterator ends after one: pass a list"
        )
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor | Dataset):
        raise TypeError(f"loader is a {type(loader).__name__}; it must give batches: a DataLoader, or x.split(256)")
    ranks = Ranks(process_group)
    run = partial(_run, _unwrapped(model), loader, device, forward or _feed)
    before = {layer: _copies(layer) for layer in layers}
    try:
        with torch.no_grad(), _evaluating(model):
            if layer_by_layer:
                found = _measure_in_turn(layers, run, ranks)
            else:
                with _by_batches(layers):
                    found = _measure(list(layers), run, ranks)
            for layer in layers:
                _restore(layer, before[layer])
            _check(found, layers)
            for layer, seen in found.items():
                _store(layer, seen)
    except BaseException:
        with torch.no_grad():
            for layer in layers:
                _restore(layer, before[layer])
        raise
    unused = [name or "the model" for layer, name in layers.items() if found[layer].calls == 0]
    if unused:
        warnings.warn(
            f"these batch norms were not called, and keep their statistics: {', '.join(unused)}", stacklevel=2
        )
    return model


def _measure(layers: Sequence[_BatchNorm], run: Callable[[], int], ranks: Ranks) -> dict[_BatchNorm, Seen]:
    """One pass over the loader; what each layer saw, on all ranks together."""
    seen = {layer: Seen(layer) for layer in layers}
    order: list[_BatchNorm] = []

    def look(layer: _BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = args[0] if args else kwargs["input"]
        layer._check_input_dim(z)  # type: ignore[no-untyped-call]  # as it would itself, after this
        if not seen[layer].calls:
            order.append(layer)
        seen[layer].add(z, args[2] if len(args) > 2 else kwargs.get("mask"))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    with ranks.together():
        try:
            batches = run()
        finally:
            for hook in hooks:
                hook.remove()
    for place, layer in enumerate(order):
        seen[layer].place = place + 1
    merged = ranks.gather([float(batches), *_packed(seen.values())])
    if not any(values[0] for values in merged):
        raise ValueError("the loader gave no batch" + (" on any rank" if len(merged) > 1 else ""))
    return _unpacked(layers, [values[1:] for values in merged])


def _measure_in_turn(layers: Mapping[_BatchNorm, str], run: Callable[[], int], ranks: Ranks) -> dict[_BatchNorm, Seen]:
    """One pass per layer, in the order of their first calls; the layers before it have their new statistics by then."""
    found = _measure(list(layers), run, ranks)
    called = sorted((layer for layer in layers if found[layer].calls), key=lambda layer: found[layer].place)
    for k, layer in enumerate(called):
        if k > 0:
            found[layer] = _measure([layer], run, ranks)[layer]
        _check({layer: found[layer]}, layers)
        _store(layer, found[layer])
    return found


def _run(model: nn.Module, loader: Iterable[Any], device: torch.device | str | None, forward: Forward) -> int:
    batches = 0
    for batch in loader:
        forward(model, batch if device is None else _moved(batch, device))
        batches += 1
    return batches


def _feed(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, tuple | list):
        batch = batch[0]
    if isinstance(batch, Mapping):
        model(**batch)
    else:
        model(batch)


def _moved(batch: Any, device: torch.device | str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch]
    return batch


def _packed(seen: Iterable[Seen]) -> Iterator[float]:
    for one in seen:
        yield from (one.moments.count, one.calls, one.place)
        yield from one.moments.mean.tolist()
        yield from one.moments.m2.tolist()


def _unpacked(layers: Sequence[_BatchNorm], ranks: Sequence[Sequence[float]]) -> dict[_BatchNorm, Seen]:
    """Merged in the order of ranks, and so the same bits on each."""
    found = {layer: Seen(layer) for layer in layers}
    for values in ranks:
        at = 0
        for layer, seen in found.items():
            (count, calls, place), c = values[at : at + 3], layer.num_features
            mean, m2 = torch.tensor(values[at + 3 : at + 3 + 2 * c], dtype=torch.float64).view(2, c)
            seen.moments = seen.moments.merge(Moments(count, mean, m2))
            seen.calls = max(seen.calls, int(calls))
            seen.place = int(min(filter(None, (seen.place, place)), default=0))
            at += 3 + 2 * c
    return found


def _check(found: Mapping[_BatchNorm, Seen], names: Mapping[_BatchNorm, str]) -> None:
    for layer, seen in found.items():
        name, moments = names[layer] or "the model", seen.moments
        if seen.calls and moments.count < 2:
            raise ValueError(
                f"batch norm {name} saw {moments.count:.0f} values per channel in all of the loader; its unbiased "
                "variance needs at least 2"
            )
        if not (moments.mean.isfinite().all() and moments.m2.isfinite().all()):
            raise ValueError(f"the inputs of batch norm {name} are not finite: its statistics would not be either")


def _store(layer: _BatchNorm, seen: Seen) -> None:
    if seen.calls and layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(seen.moments.mean)
        layer.running_var.copy_(seen.moments.variance(unbiased=True))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(seen.calls)


def _copies(layer: _BatchNorm) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}


def _restore(layer: _BatchNorm, before: Mapping[str, Tensor]) -> None:
    for name, buffer in layer.named_buffers(recurse=False):
        buffer.copy_(before[name])


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel, which in each forward would wait for ranks that have fewer batches."""
    wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
    return model.module if wrapped else model  # type: ignore[union-attr, return-value]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Training flags off, without model.eval(), which a model may have changed."""
    flags = {module: module.training for module in model.modules()}
    try:
        for module in flags:
            module.training = False
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class _ThisRanks(_BatchNorm):
    """SyncBatchNorm without the other ranks, who may have no batch now; any number of dimensions, on any device."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


@contextmanager
def _by_batches(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Every layer normalises by its batch's own statistics, by this rank's alone."""
    before = [(layer, type(layer), layer.__dict__.get("process_group")) for layer in layers]
    try:
        for layer, cls, _ in before:
            layer.training = True
            if cls is nn.SyncBatchNorm:
                layer.__class__ = _ThisRanks
            elif isinstance(layer, WholeBatchNorm):
                layer.process_group = None
        yield
    finally:
        for layer, cls, group in before:
            layer.training = False
            layer.__class__ = cls
            if isinstance(layer, WholeBatchNorm):
                layer.process_group = group
