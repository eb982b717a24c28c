"""What torch keeps for each thread, taken away when a part stops and brought back when it goes on.

Parts share a thread, and each may stand inside of contexts of its own: ``no_grad``, autocast, hooks, modes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
import torch.overrides
from torch import Tensor
from torch.utils import _python_dispatch

_autograd: Any = torch._C._autograd
dispatch: Any = _python_dispatch
overrides: Any = torch.overrides
# What the compiler asks for. Of the whole process, and each mode puts back at its end what it found at its beginning.
_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


@dataclass(slots=True)
class ThreadState:
    """A snapshot. ``restore`` may be called once for each ``take``, and from any other snapshot's state."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]
    autocast_cache: bool
    hooks: tuple[Hooks, ...]
    function_modes: tuple[Any, ...]
    dispatch_modes: tuple[Any, ...]
    dispatch_flags: tuple[bool, ...]
    frames: Any = None  # the compiler's callback for new frames
    guard: Any = None

    @classmethod
    def take(cls) -> Self:
        """What holds now."""
        return cls(
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in autocast_devices()),
            torch.is_autocast_cache_enabled(),
            list_hooks(),
            tuple(overrides._get_current_function_mode_stack()) if torch._C._len_torch_function_stack() else (),
            tuple(dispatch._get_current_dispatch_mode_stack()) if dispatch._len_torch_dispatch_stack() else (),
            tuple(getattr(dispatch, name, False) for name in _FLAGS),
            _get_frames_callback(),
        )

    def leave(self, other: ThreadState) -> None:
        """From this state, which holds now, into another one that does not hold."""
        if self.inference != other.inference:
            # Its end brings back all that belongs to this mode, the dispatcher's keys too: that is how we return.
            self.guard = torch._C._InferenceMode(other.inference)
            self.guard.__enter__()
        other._enter(self)

    def _enter(self, now: ThreadState) -> None:
        if self.guard is not None:
            self.guard.__exit__(None, None, None)
            self.guard = None
        torch._C._set_grad_enabled(self.grad)
        for kind, (enabled, dtype), was in zip(autocast_devices(), self.autocast, now.autocast, strict=True):
            if (enabled, dtype) != was:
                torch.set_autocast_enabled(kind, enabled)
                torch.set_autocast_dtype(kind, dtype)
        if self.autocast_cache != now.autocast_cache:
            torch.set_autocast_cache_enabled(self.autocast_cache)
        if self.hooks != now.hooks:
            _take_hooks()
            _put_hooks(self.hooks)
        if self.function_modes != now.function_modes:
            for _ in now.function_modes:
                overrides._pop_mode()
            for mode in self.function_modes:
                overrides._push_mode(mode)
        if self.dispatch_modes != now.dispatch_modes:
            for _ in now.dispatch_modes:
                dispatch._pop_mode()
            for mode in self.dispatch_modes:
                dispatch._push_mode(mode)
        if self.dispatch_flags != now.dispatch_flags:
            for name, flag in zip(_FLAGS, self.dispatch_flags, strict=True):
                setattr(dispatch, name, flag)
            if hasattr(dispatch, "set_is_in_mode_without_ignore_compile_internals"):
                dispatch.set_is_in_mode_without_ignore_compile_internals(self.dispatch_flags[2])
        if self.frames is not now.frames:
            _set_frames_callback(self.frames)


@cache
def autocast_devices() -> tuple[str, ...]:
    """The devices that autocast may be about."""
    kinds = ["cpu"]
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        assert accelerator is not None
        kinds.append(accelerator.type)
    return tuple(kinds)


def list_hooks() -> tuple[Hooks, ...]:
    """All hooks for saved tensors on this thread; innermost last. They cannot be seen but by taking them off."""
    hooks = _take_hooks()
    _put_hooks(hooks)
    return hooks


def _take_hooks() -> tuple[Hooks, ...]:
    """Take all hooks for saved tensors off. Before torch 2.8 they cannot be seen: none."""
    if not hasattr(_autograd, "_top_saved_tensors_default_hooks"):
        return ()
    hooks: list[Hooks] = []
    while (top := _autograd._top_saved_tensors_default_hooks(True)) is not None:
        hooks.append(top)
        _autograd._pop_saved_tensors_default_hooks()
    return tuple(reversed(hooks))


def _put_hooks(hooks: tuple[Hooks, ...]) -> None:
    for pack, unpack in hooks:
        _autograd._push_saved_tensors_default_hooks(pack, unpack)


def _get_frames_callback() -> Any:
    frames = _frames()
    if frames is None:
        return None
    callback = frames.set_eval_frame(None)
    frames.set_eval_frame(callback)
    return callback


def _set_frames_callback(callback: Any) -> None:
    frames = _frames()
    if frames is not None:
        frames.set_eval_frame(callback)


def _frames() -> Any:
    """torch's compiler, where it is loaded: before that nothing of it can be in force."""
    import sys

    return sys.modules.get("torch._dynamo.eval_frame")
