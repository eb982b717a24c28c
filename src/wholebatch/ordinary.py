"""An ordinary training step of batch norm: one compiled call each way, by this process alone or with ranks of its host.

At ``(64, 20)`` batch norm takes 2 microseconds, and each step of Python a tenth of one or more. So the compiled part
looks at the tensors itself (native/borrowed.h) and says what is ordinary; whatever is not goes the way of
:mod:`wholebatch.direct` and beyond, which has all the errors::

    forward   fits?  ->  train            moments, [meet, merge,] apply; running statistics, counter
    backward             differentiate    sums, [meet, add,] input gradient

A meeting that does not come about at once goes back to Python, which looks for signals and for ranks that are gone;
the call is finished when the ranks have met after all. ``y`` is computed first and hung into the graph afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wholebatch.batch_norm import Call, find_gradients_differentiable
from wholebatch.kernels.batch_norm import Affine, Reference, Steps, accumulation_dtype, address_of, steps
from wholebatch.kernels.batch_norm.outputs import LEAST
from wholebatch.moments import refuse_one_value
from wholebatch.parts import PARTY
from wholebatch.sharing import Meeting, ProcessGroupLike, sharing_of
from wholebatch.sharing.header import pack_both
from wholebatch.sharing.processes import Processes
from wholebatch.sharing.replay import count_open

if TYPE_CHECKING:
    from wholebatch._native import Found, Mailbox

_Optional = Tensor | None
_Gradients = tuple[Tensor, _Optional, _Optional, _Optional, None]
# Of a forward call for its backward one: what it found, bytes of the input, slope, eps, whether there is a residual,
# who shares, layer, and the header of the meeting.
_Kept = tuple["Found", int, float, float, bool, Processes | None, str, bytes]

_MET = 0  # native/mailbox.h


def train_at_once(
    input: Tensor,
    weight: _Optional,
    bias: _Optional,
    residual: _Optional,
    running_mean: _Optional,
    running_var: _Optional,
    counter: _Optional,
    momentum: float | Tensor,
    eps: float,
    slope: float,
    process_group: ProcessGroupLike,
    layer: str,
) -> _Optional:
    """A training step forward as :func:`wholebatch.functional.batch_norm` has it, without a mask; not to be compiled.

    Args:
        counter: of calls, int64 of no dimension; 1 is added. None: nothing is counted.
        slope: of the activation below 0, see :class:`wholebatch.kernels.batch_norm.Affine`.
        layer: its name; of no meaning where ``process_group`` is None.

    Returns:
        ``y``; None where the step is no ordinary one: then nothing has been done.

    Raises:
        ValueError: one value per channel over all ranks, or a group that is none.
        MeetingError: the ranks do not meet.
    """
    kernel = steps()
    if (
        kernel is None
        or type(momentum) is not float
        or count_open()
        or PARTY.get() is not None
        or torch._C._len_torch_dispatch_stack()  # a mode wants to see operations
        or torch._C._get_tracing_state()  # jit.trace records the call of a function, and y is none of its inputs
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or (running_mean is not None and running_mean.requires_grad)
        or (running_var is not None and running_var.requires_grad)
    ):
        return None
    size = kernel.native.fits(input, weight, bias, residual, running_mean, running_var, counter)
    if size == 0:
        return None
    sharing, header = None, b""
    if process_group is not None:
        sharing = sharing_of(process_group)
    if sharing is None:
        if size < 0:  # one value per channel
            return None
        y = torch.empty_like(input) if size < LEAST else kernel.outputs.like(input)
        found = kernel.native.train(
            input, weight, bias, residual, y, running_mean, running_var, counter, slope, eps, momentum
        )
    else:
        box = sharing.mailbox() if type(sharing) is Processes else None
        if box is None:
            return None
        assert isinstance(sharing, Processes)
        forward, header = pack_both(layer, input.shape[1], accumulation_dtype(input.dtype))
        y = torch.empty_like(input) if size < LEAST else kernel.outputs.like(input)  # of one value, too
        given = input, weight, bias, residual, y, running_mean, running_var, counter, slope, eps, momentum
        found = _train_together(kernel.native, sharing, box, forward, given)
        if found.count == 1:
            refuse_one_value(input.shape)
    # Autograd has not seen that these were written to.
    if running_mean is not None and running_var is not None and counter is not None:
        torch._C._increment_version([running_mean, running_var, counter])
    else:
        torch._C._increment_version([x for x in (running_mean, running_var, counter) if x is not None])
    if torch.is_grad_enabled():
        kept = found, size, slope, eps, residual is not None, sharing, layer, header
        y = _apply(input, weight, bias, residual, (y, kept))
    return y


def _train_together(native: Any, sharing: Processes, box: Mailbox, header: bytes, given: tuple[Any, ...]) -> Found:
    found: Found
    try:
        status, found = native.train_together(box, header, *given)
        if status != _MET:
            sharing.settle(status)
            native.train_on(box, found, *given)
    except BaseException as error:  # KeyboardInterrupt too: this rank has left in the middle of a meeting
        sharing.fail(error)
        raise
    return found


class _Ordinary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: _Optional, bias: _Optional, residual: _Optional, done: tuple[Tensor, _Kept]
    ) -> Tensor:
        y, kept = done
        # The residual is needed only to find again on which side of 0 the activation was.
        ctx.save_for_backward(z, weight, bias, residual if kept[2] != 1 else None)
        ctx.kept = kept  # without y, which holds the graph that holds this
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> _Gradients:
        if torch.is_grad_enabled():
            return _differentiate_twice(g, ctx.saved_tensors, ctx.kept)
        return _differentiate(g, ctx.saved_tensors, ctx.kept)


# Not Function.apply, which looks for torch.func first: train_at_once has.
_apply: Any = super(torch.autograd.Function, _Ordinary).apply


def _differentiate(g: Tensor, saved: Any, kept: _Kept) -> _Gradients:
    z, weight, bias, residual = saved
    found, size, slope, _, has_residual, sharing, layer, header = kept
    kernel = steps()
    assert kernel is not None
    like = torch.empty_like if size < LEAST else kernel.outputs.like
    dz = like(z)
    dresidual = None if residual is None else like(z)
    # Each whole: views of one tensor could not be stored apart.
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    given = found, g, z, weight, bias, residual, dz, dresidual, dweight, dbias, slope
    if sharing is None:
        done = kernel.native.differentiate(*given)
    else:
        box = sharing.mailbox()
        done = box is not None and _differentiate_together(kernel.native, sharing, box, header, given)
    if not done:
        affine = Affine(weight, bias, residual, slope)
        dz, dresidual = _differentiate_piecewise(kernel, found, g, z, affine, dweight, dbias, sharing, layer)
    return dz, dweight, dbias, (g if dresidual is None else dresidual) if has_residual else None, None


def _differentiate_together(
    native: Any, sharing: Processes, box: Mailbox, header: bytes, given: tuple[Any, ...]
) -> bool:
    """False: the tensors do not lie in memory as the kernels take them, and nobody was met."""
    try:
        status: int = native.differentiate_together(box, header, *given)
        if status > _MET:
            sharing.settle(status)
            native.differentiate_on(box, *given)
    except BaseException as error:
        sharing.fail(error)
        raise
    return status >= _MET


def _differentiate_piecewise(
    kernel: Steps,
    found: Found,
    g: Tensor,
    z: Tensor,
    affine: Affine,
    dweight: _Optional,
    dbias: _Optional,
    sharing: Processes | None,
    layer: str,
) -> tuple[Tensor, _Optional]:
    """The gradient, or what was saved, comes back in another layout, or somebody watches the meetings meanwhile."""
    wanted = address_of(dweight), address_of(dbias)
    mean, rstd = found.addresses
    if sharing is None:
        return kernel.backward_at(g, z, mean, rstd, affine, found.count, *wanted)
    sums = kernel.sums_at(g, z, mean, rstd, affine, *wanted)
    whole = sharing.sum(sums, Meeting(layer, "backward"))
    return kernel.gradient_at(g, z, mean, rstd, affine, whole.data_ptr(), found.count)


def _differentiate_twice(g: Tensor, saved: Any, kept: _Kept) -> _Gradients:
    """By torch's operations: what they find is differentiated in its turn."""
    z, weight, bias, residual = saved
    found, _, slope, eps, has_residual, sharing, layer, _ = kept
    call = Call(Reference(), eps, slope, sharing, layer)
    affine = Affine(weight, bias, residual, slope)
    dz, dresidual, sums = find_gradients_differentiable(g, z, affine, call, found.count)
    return (
        dz,
        None if weight is None else sums[1].clone(),
        None if bias is None else sums[0].clone(),
        (g if dresidual is None else dresidual) if has_residual else None,
        None,
    )
