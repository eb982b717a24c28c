"""``accumulate``: one optimizer step's forward, loss and backward, in micro-batches that are exact together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, get_args

import torch
from torch import Tensor, nn

from wholebatch.microbatches.conductor import conduct
from wholebatch.microbatches.models import bind, known_batch_norms
from wholebatch.microbatches.offload import Offload, store_maker
from wholebatch.microbatches.trees import count_rows, join, split

Reduction = Literal["whole", "mean", "sum"]


def accumulate(
    model: Callable[..., Any],
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    micro_batches: int = 8,
    *,
    offload: Offload = "none",
    reduction: Reduction = "whole",
    convert: bool = False,
    backward: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Forward, loss and backward of one optimizer step, in micro-batches, exact as on the undivided mini-batch.

    ::

        optimizer.zero_grad()
        loss = wholebatch.accumulate(model, nn.CrossEntropyLoss(), x, y, micro_batches=8)
        optimizer.step()

    adds to the parameters' ``grad`` what ``loss_fn(model(x), y).backward()`` would, within rounding, and moves running
    statistics as that does, see :func:`wholebatch.lockstep`. There is nothing to be scaled or divided.

    Args:
        model: a module, or another function.
        loss_fn: takes outputs and targets, and returns a tensor of one number.
        inputs: a tensor, a tuple of the model's inputs, or a dict of them by keyword. Tensors are cut along dimension
            0, all else goes to every micro-batch.
        targets: of any structure, cut likewise.
        micro_batches: how many; their sizes differ by at most 1 example, and none is empty.
        offload: as for :func:`wholebatch.lockstep`.
        reduction: how the loss of the mini-batch comes about. ``"whole"`` puts the micro-batches' outputs together and
            calls ``loss_fn`` once: exact for any loss, with class weights, an ``ignore_index``, or terms between
            examples. The others call it for each micro-batch, inside of its part, so that only losses are held where
            outputs are large: ``"sum"`` adds them up, for a loss that is a sum over examples; ``"mean"`` weighs them by
            their numbers of examples, ``sum(n_p * loss_p) / sum(n_p)``, for a loss that is a mean over examples of
            equal weight.
        convert: as for :func:`wholebatch.lockstep`.
        backward: called with the loss in place of ``loss.backward()``: ``lambda loss: scaler.scale(loss).backward()``.

    Returns:
        The loss of the mini-batch, detached.

    Raises:
        ValueError: rows that do not fit together, fewer than 1 micro-batch, an empty mini-batch; a loss that says of
            itself (``reduction``, ``weight``, ``ignore_index``) that ``"mean"`` or ``"sum"`` is not its rule; a
            ``backward`` that runs no backward pass; or as for :func:`wholebatch.lockstep`, as all other errors. Until
            backward begins nothing has changed.
    """
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; it must be one of {', '.join(map(repr, get_args(Reduction)))}")
    rows = count_rows(inputs, "inputs")
    if rows != count_rows(targets, "targets"):
        raise ValueError(f"inputs have {rows} rows and targets {count_rows(targets, 'targets')}; they must be as many")
    sizes = _sizes(rows, micro_batches)
    _check_loss(loss_fn, targets, reduction)
    parts, wanted = split(inputs, sizes), split(targets, sizes)
    calls = bind(model, parts)
    if reduction != "whole":
        calls = [_with_loss(call, loss_fn, target) for call, target in zip(calls, wanted, strict=True)]
    make_store = store_maker(offload, model, (inputs, targets))
    with known_batch_norms(model, convert), conduct(calls, make_store, offload != "none") as outputs:
        if reduction == "whole":
            loss = loss_fn(join(outputs), targets)
            _check_scalar(loss)
        else:
            total = torch.stack(outputs)
            weights = [size / rows if reduction == "mean" else 1 for size in sizes]
            loss = (total * torch.tensor(weights, dtype=total.dtype, device=total.device)).sum()
            del total
        outputs.clear()
    if backward is None:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        _run_backward(backward, loss)
    return loss.detach()


def _run_backward(backward: Callable[[Tensor], object], loss: Tensor) -> None:
    """``backward(loss)``, which must go through the loss: ``scaler.scale`` alone would leave gradients as they are."""
    reached: list[Tensor] = []
    hook = loss.register_hook(reached.append) if loss.requires_grad else None  # type: ignore[no-untyped-call]
    backward(loss)
    if hook is not None:
        hook.remove()
        if not reached:
            raise ValueError(
                "backward(loss) returned, and no gradient came to the loss: let it run a backward pass, as "
                "lambda loss: scaler.scale(loss).backward() does"
            )


def _sizes(rows: int, micro_batches: int) -> list[int]:
    if not isinstance(micro_batches, SupportsIndex):
        raise TypeError(f"micro_batches is {micro_batches!r}; it must be a whole number")
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}; it must be at least 1")
    if rows == 0:
        raise ValueError("the mini-batch has 0 examples, and its loss would be of nothing; leave the step out")
    parts = min(micro_batches, rows)
    return [rows // parts + (part < rows % parts) for part in range(parts)]


def _with_loss(call: Callable[[], Any], loss_fn: Callable[[Any, Any], Tensor], target: Any) -> Callable[[], Tensor]:
    def compute_loss() -> Tensor:
        loss = loss_fn(call(), target)
        _check_scalar(loss)
        return loss.reshape(())

    return compute_loss


def _check_scalar(loss: Tensor) -> None:
    if loss.numel() != 1:
        raise ValueError(f"loss_fn returned a tensor {tuple(loss.shape)}; it must return one number: reduce it there")


def _check_loss(loss_fn: Any, targets: Any, reduction: Reduction) -> None:
    """What a loss of torch.nn tells of itself must fit the rule."""
    if reduction == "whole" or not isinstance(loss_fn, nn.Module):
        return
    own = getattr(loss_fn, "reduction", reduction)
    if own != reduction:
        raise ValueError(
            f"reduction={reduction!r}, and {type(loss_fn).__name__} has reduction={own!r}: "
            + (f"pass reduction={own!r}, or 'whole'" if own in get_args(Reduction) else "pass reduction='whole'")
            + (", with a loss that is reduced to one number" if own == "none" else "")
        )
    if reduction == "sum":
        return
    if getattr(loss_fn, "weight", None) is not None and isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
        raise ValueError(
            f"reduction='mean' weighs micro-batches by their examples, and {type(loss_fn).__name__} with class weights "
            "divides by the sum of its targets' weights: use reduction='whole'"
        )
    ignored = getattr(loss_fn, "ignore_index", None)
    if ignored is not None and isinstance(targets, Tensor) and not targets.is_floating_point():
        number = int((targets == ignored).sum())
        if number:
            raise ValueError(
                f"reduction='mean' weighs micro-batches by their examples, and {number} targets are ignore_index "
                f"({ignored}), which the loss's mean leaves out: use reduction='whole'"
            )
