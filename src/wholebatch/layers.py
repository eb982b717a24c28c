"""``BatchNorm1d/2d/3d``: PyTorch's layers, with the whole mini-batch's statistics however it is split."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from wholebatch.activations import Activation, resolve_activation
from wholebatch.devices import check_device
from wholebatch.functional import Save as Save
from wholebatch.functional import batch_norm
from wholebatch.ordinary import train_at_once
from wholebatch.parts import count_call
from wholebatch.sharing import ProcessGroupLike, announce, check_process_group


def call_whole(module: nn.Module, input: Proxy, *more: Any) -> Any:
    """Its call as one node of the graph that torch.fx traces: the module is looked into when the graph runs."""
    path = input.tracer.path_of_module(module)  # type: ignore[attr-defined]
    return input.tracer.create_proxy("call_module", path, (input, *more), {})


class WholeBatchNorm(_BatchNorm):
    """What the layers have in common. Everything that PyTorch's layers have is as there: constructor, ``state_dict``,
    training and evaluation, numbers. Keywords beyond it:

    Args:
        process_group: who shares the mini-batch: None for this process alone, ``"world"`` for all ranks, a group of
            torch.distributed, or a :class:`wholebatch.sharing.Sharing`.
        activation: what follows, done in the same pass with the same numbers: ``relu``, ``leaky_relu``, another name of
            :func:`wholebatch.activations.resolve_activation`, a function or a module.
        save: see :func:`wholebatch.functional.batch_norm`.

    A call takes ``residual`` (added before the activation) and ``mask`` (True where an element counts) after the input,
    as in :func:`wholebatch.functional.batch_norm`.
    """

    process_group: ProcessGroupLike
    activation: Activation
    save: Save
    marks = False  # convert sets it: the activation module that follows is told what is done already

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        process_group: ProcessGroupLike = None,
        activation: Activation = None,
        save: Save = None,
        **keywords: Any,  # bias=False, where this version of PyTorch has it
    ) -> None:
        check_device(device)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **keywords)
        self.equip(process_group=process_group, activation=activation, save=save)

    def equip(self, *, process_group: ProcessGroupLike, activation: Activation, save: Save, name: str = "") -> Self:
        """Set what these layers have beyond PyTorch's, also on one that was PyTorch's before."""
        resolve_activation(activation)  # for its errors
        if save not in (None, "input"):
            raise ValueError(f"save is {save!r}; it must be None or 'input'")
        if not isinstance(process_group, int):  # what a rank has that is not in the group is told where it is used
            check_process_group(process_group)
        self.process_group, self.activation, self.save = process_group, activation, save
        self._name = name
        announce(process_group)
        return self

    @property
    def name(self) -> str:
        """Its name in errors: in the model, where :func:`wholebatch.convert` has told it, else class and channels."""
        return self._name or f"{type(self).__name__}({self.num_features})"

    def forward(self, input: Tensor, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``activation(batch_norm(input) + residual)``, see :func:`wholebatch.functional.batch_norm`."""
        if isinstance(input, Proxy):  # torch.fx keeps torch.nn's layers whole; ours stay whole too
            return call_whole(self, input, *(() if residual is None and mask is None else (residual, mask)))
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        # A module looks for a tensor everywhere else first, a microsecond each time: so where they are.
        buffers, parameters = self._buffers, self._parameters
        running_mean, running_var = buffers["running_mean"], buffers["running_var"]
        counter = buffers["num_batches_tracked"]
        # Parametrized ones, and those that a transformation has put in their place, are found by their names.
        weight = parameters["weight"] if "weight" in parameters else self.weight  # noqa: SIM401
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401
        # As in PyTorch: without running statistics the mini-batch's own serve in evaluation too.
        training = self.training or (running_mean is None and running_var is None)
        if not self.training or not self.track_running_stats:
            counter = None
        if self.training and not self.track_running_stats:
            running_mean = running_var = None
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if self.momentum is None and counter is not None:
            momentum = 1.0 / (counter + 1).to(torch.float64)
        if self.training and mask is None and self.save is None and not torch.compiler.is_compiling():
            slope, function = resolve_activation(self.activation)
            group = self.process_group
            done = train_at_once(
                input,
                weight,
                bias,
                residual,
                running_mean,
                running_var,
                counter,
                momentum,
                self.eps,
                slope,
                group,
                "" if group is None else self.name,
            )
            if done is not None:
                y = done if function is None else function(done)
                if self.marks:
                    y.activated_with = slope  # type: ignore[attr-defined]
                return y
        # A compiler follows no mark on a tensor; there the module that follows does its activation itself.
        marks = self.marks and not torch.compiler.is_compiling()
        activation = None if self.marks and not marks else self.activation
        y = batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            self.eps,
            process_group=self.process_group,
            mask=mask,
            activation=activation,
            residual=residual,
            save=self.save,
            layer=self.name,
        )
        if counter is not None:
            count_call(counter)
        if marks:
            y.activated_with = resolve_activation(activation)[0]  # type: ignore[attr-defined]
        return y

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]  # type: ignore[no-untyped-call]
        for key in ("process_group", "activation", "save"):
            value = getattr(self, key)
            if value is not None and not isinstance(value, nn.Module):
                parts.append(f"{key}={_short(value)}")
        return ", ".join(parts)

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script calls first, of every module of a model."""
        raise TypeError(
            f"{self.name} cannot be scripted: TorchScript knows nothing of who shares a mini-batch. Script a copy that "
            "has PyTorch's own layers, wholebatch.revert(copy.deepcopy(model)), or use torch.compile or torch.export"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if not isinstance(self.process_group, str):
            memo[id(self.process_group)] = self.process_group  # processes are shared, not copied
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        return new

    def __getstate__(self) -> dict[str, Any]:
        if self.process_group is not None and not isinstance(self.process_group, str):
            raise TypeError(
                f"{self.name} cannot be pickled: its process_group {_short(self.process_group)} belongs to running "
                "processes. Save state_dict() instead, or set process_group to 'world' or None before"
            )
        return dict(self.__dict__)


def _short(value: object) -> str:
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, ProcessGroup):
        return f"<group of {value.size()}>"
    return getattr(value, "__name__", type(value).__name__)


class BatchNorm1d(WholeBatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` over the whole mini-batch: ``(N, C)`` or ``(N, C, L)``. See :class:`WholeBatchNorm`."""


class BatchNorm2d(WholeBatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` over the whole mini-batch: ``(N, C, H, W)``. See :class:`WholeBatchNorm`."""


class BatchNorm3d(WholeBatchNorm, nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` over the whole mini-batch: ``(N, C, D, H, W)``. See :class:`WholeBatchNorm`."""


class BatchNorm(WholeBatchNorm):
    """Any number of dimensions from two, ``(N, C, *)``, as ``torch.nn.SyncBatchNorm``. See :class:`WholeBatchNorm`."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


class _Lazy(_LazyNormBase):
    """``num_features`` is read from the first input, and the layer becomes its ordinary class."""

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        process_group: ProcessGroupLike = None,
        activation: Activation = None,
        save: Save = None,
        **keywords: Any,
    ) -> None:
        check_device(device)
        super().__init__(eps, momentum, affine, track_running_stats, device, dtype, **keywords)  # type: ignore[no-untyped-call]
        WholeBatchNorm.equip(self, process_group=process_group, activation=activation, save=save)  # type: ignore[type-var]

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:  # a call has residual and mask as well
        super().initialize_parameters(input)  # type: ignore[no-untyped-call]


class LazyBatchNorm1d(_Lazy, BatchNorm1d):
    """:class:`BatchNorm1d` that reads ``num_features`` from its first input."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, BatchNorm2d):
    """:class:`BatchNorm2d` that reads ``num_features`` from its first input."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, BatchNorm3d):
    """:class:`BatchNorm3d` that reads ``num_features`` from its first input."""

    cls_to_become = BatchNorm3d
