"""The person's own function: found by ``package.module:function``, called, and told where it failed."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wholebatch.sharing import MeetingError

# Frames of these say nothing about where the person's code went wrong.
_OTHERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]), str(Path(importlib.__file__).parent))


class StepError(ValueError):
    """The person's function cannot be measured, or failed."""


def find_function(target: str) -> Callable[[], Any]:
    """The function that ``package.module:function`` names; the working directory is looked into first.

    Raises:
        StepError: no such module or function, not callable, or it takes arguments; or importing its module failed.
    """
    name, _, path = target.partition(":")
    if name.endswith(".py"):
        suggested = name.removesuffix(".py").replace("/", ".").strip(".")
        raise StepError(f"{target!r} names a file; name its module: {suggested}:{path or 'function'}")
    if not name or not path:
        raise StepError(f"{target!r} names no function; write package.module:function, such as train:step")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise StepError(
                f"there is no module {error.name!r} in {Path.cwd()} or among the installed ones; write "
                "package.module:function, and run from the folder that holds the package"
            ) from error
        raise StepError(f"importing {name} raised {describe(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            offered = [n for n, value in vars(found).items() if inspect.isfunction(value) and value.__module__ == name]
            remedy = f"it has {', '.join(offered[:8])}" if offered else "it has no functions of its own"
            raise StepError(f"{name} has no {path!r}; {remedy}")
        found = getattr(found, part)
    _check_callable(found, target)
    function: Callable[[], Any] = found
    return function


def call(function: Callable[[], Any], what: str) -> Any:
    """Call it.

    Raises:
        StepError: it raised, naming the error and the last line of the person's own code.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise StepError(f"{what} raised {describe(error)}") from error


def take_step(result: Any, target: str) -> Callable[[], Any] | None:
    """The step, where that is what the function returned; None: the call itself was a step.

    Raises:
        StepError: what it returned can be neither.
    """
    if inspect.isgenerator(result) or inspect.iscoroutine(result):
        result.close()
        kind = "a generator" if inspect.isgenerator(result) else "a coroutine"
        raise StepError(f"{target} returned {kind}; let it do one training step, or return a function that does")
    if not callable(result) or isinstance(result, type):
        return None
    _check_callable(result, f"what {target} returned ({getattr(result, '__name__', type(result).__name__)})")
    step: Callable[[], Any] = result
    return step


def describe(error: BaseException) -> str:
    """``ValueError: text (file:line, in function)``, with the last line that is the person's own."""
    said = error.cause if isinstance(error, MeetingError) else str(error)  # the whole of it is a table
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_OTHERS, "<"))]
    if isinstance(error, SyntaxError) or not own:
        return text
    return f"{text} ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name})"


def _check_callable(value: Any, what: str) -> None:
    if not callable(value):
        raise StepError(f"{what} is of type {type(value).__name__} and cannot be called; name a function")
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return  # some callables of C have none
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if isinstance(value, torch.nn.Module) and not needed:
        needed = ["input"]
    if needed:
        raise StepError(
            f"{what} takes arguments ({', '.join(needed)}); name a function without any that does one training step, "
            "or sets up and returns one that does"
        )
