"""Who hands its output to whom in a model's forward, as far as torch.fx can tell with certainty.

Tracing the whole model would be all or nothing: one ``if x.shape[0] > 1`` and nothing is known. So a module that cannot
be traced counts as opaque, the trace of what is above it goes on around it, and what is below it is traced on its own
(see :mod:`wholebatch.conversion.reach` for when that may be believed).

A trace runs the model's own Python code, with stand-ins for tensors. It is made without a trace: attributes, random
numbers and training flags are afterwards as before. Hooks are not run: a module that has some is not looked into from
outside.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm

from wholebatch.conversion.reach import doubt_whole


@dataclass(eq=False)
class Region:
    """A module that was traced, and its graphs: one per training flag, and per way to call it."""

    root: nn.Module
    graphs: list[Graph]


@dataclass
class Survey:
    """What is known of a model's forward.

    Attributes:
        names: of every module; of a shared one the first.
        calls: of every module that is called as a whole in a traced graph, the nodes that call it.
        callees: the module that a node calls.
        opaque: modules whose forward cannot be traced, and in one line why.
        read: modules whose parameters or buffers a traced forward uses directly.
        homes: the regions in which a module is called.
    """

    names: dict[nn.Module, str]
    calls: dict[nn.Module, list[Node]] = field(default_factory=dict)
    callees: dict[Node, nn.Module] = field(default_factory=dict)
    opaque: dict[nn.Module, str] = field(default_factory=dict)
    read: set[nn.Module] = field(default_factory=set)
    homes: dict[nn.Module, list[Region]] = field(default_factory=dict)

    def doubt(self, module: nn.Module) -> str | None:
        """Why the calls of ``module`` in the graphs may not be all there is to know; None where they are."""
        if hooked(module):
            return f"{self.name(module)} has hooks, or a forward set on the object"
        if module in self.read:
            return f"the parameters of {self.name(module)} are used directly as well"
        caller = next((caller for caller in self.opaque if module in _own(caller)), None)
        if caller is not None:
            return f"the forward of {self.name(caller)} cannot be traced: {self.opaque[caller]}"
        if module not in self.homes:
            return f"{self.name(module)} is not called in the model's forward"
        return next(filter(None, (self._reached(module, region) for region in self.homes[module])), None)

    def name(self, module: nn.Module) -> str:
        """In quotes, for messages."""
        return repr(self.names[module]) if self.names[module] else f"the model ({type(module).__name__})"

    def _reached(self, module: nn.Module, region: Region) -> str | None:
        inner = [name for path in _paths(region.root, module) for name in path]
        sequence = isinstance(region.root, nn.Sequential)
        for caller in self.opaque:
            if caller is region.root or not any(part is region.root for part in caller.modules()):
                continue
            if "forward" in caller.__dict__:
                return f"{self.name(caller)} has a forward set on the object"
            for path in _paths(caller, region.root):
                doubt = doubt_whole(caller, path, inner, sequence=sequence)
                if doubt:
                    return doubt
        return None


def survey(model: nn.Module, *, training: Sequence[bool]) -> Survey:
    """Trace what can be traced of ``model``, with its training flags set to each of ``training`` in turn."""
    found = Survey({module: name for name, module in model.named_modules()})
    with _undisturbed(model):
        regions = _trace_parts(model, found.opaque, training)
    for region in regions:
        for node in (node for graph in region.graphs for node in graph.nodes):
            if node.op == "call_module":
                module = region.root.get_submodule(str(node.target))
                found.callees[node] = module
                found.calls.setdefault(module, []).append(node)
                homes = found.homes.setdefault(module, [])
                if region not in homes:
                    homes.append(region)
            elif node.op == "get_attr":
                found.read.add(region.root.get_submodule(str(node.target).rpartition(".")[0]))
    return found


def hooked(module: nn.Module) -> bool:
    """Somebody looks at what goes in or out of ``module`` itself, or does something else in its place."""
    return "forward" in module.__dict__ or any(
        module.__dict__.get(hooks)
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


class _Tracer(Tracer):
    """Goes into every module but torch.nn's own, batch norms, those with hooks and those known to be opaque."""

    proxy_buffer_attributes = True  # buffer.add_(1) is to be seen, not done

    def __init__(self, opaque: dict[nn.Module, str]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, _BatchNorm)
            or type(m).__module__.startswith("wholebatch.")
            or m in self.opaque
            or hooked(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _trace_parts(module: nn.Module, opaque: dict[nn.Module, str], training: Sequence[bool]) -> list[Region]:
    """Regions that cover ``module`` as far as possible; ``opaque`` gets what cannot be traced."""
    if isinstance(module, _BatchNorm) or not any(True for _ in module.children()):
        return []
    container = _is_container(module)
    if not container:
        region, error = _trace(module, opaque, training)
        if region is not None:
            leaves = {
                region.root.get_submodule(str(n.target))
                for g in region.graphs
                for n in g.nodes
                if n.op == "call_module"
            }
            within = [_trace_parts(leaf, opaque, training) for leaf in leaves if hooked(leaf) and leaf not in opaque]
            return [region, *(part for parts in within for part in parts)]
    known = len(opaque)
    parts = [part for child in module.children() for part in _trace_parts(child, opaque, training)]
    if container:
        return parts
    if len(opaque) > known:  # now around those that stood in the way
        region, error = _trace(module, opaque, training)
        if region is not None:
            within_opaque = {part for caller in opaque for part in caller.modules() if part is not caller}
            return [region, *(part for part in parts if part.root in within_opaque or hooked(part.root))]
    opaque[module] = error
    return parts


def _trace(module: nn.Module, opaque: dict[nn.Module, str], training: Sequence[bool]) -> tuple[Region | None, str]:
    if "forward" in module.__dict__:
        return None, "its forward was set on the object"
    graphs = []
    for flag in training:
        for part in module.modules():
            part.training = flag
        try:
            parameters = inspect.signature(type(module).forward).parameters
            defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
            graphs.append(_Tracer(opaque).trace(module, concrete_args=defaults or None))
        except Exception as error:  # the model's own code, which was not written for stand-ins
            return None, _one_line(error)
        if defaults:
            try:  # and with those arguments given, where that can be traced
                graphs.append(_Tracer(opaque).trace(module))
            except Exception:
                continue
    return Region(module, graphs), ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text if len(text) <= 160 else text[:157] + '...'}"


def _is_container(module: nn.Module) -> bool:
    """It has no forward of its own to trace, or one that only hands on."""
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return True
    return type(module).forward is nn.Module.forward


def _own(caller: nn.Module) -> Iterator[nn.Module]:
    """The modules that ``caller``'s own code may call: its children, and those of its containers."""
    for child in caller.children():
        yield child
        if _is_container(child):
            yield from _own(child)


def _paths(module: nn.Module, part: nn.Module) -> list[list[str]]:
    """The names that lead from ``module`` to ``part``: of a shared one several."""
    return [name.split(".") for name, found in module.named_modules(remove_duplicate=False) if found is part]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Whatever the model's code does to attributes, flags and random numbers inside is undone."""
    modules = list(model.modules())
    attributes = [dict(module.__dict__) for module in modules]
    # lists and dictionaries are changed in place: parameters, buffers and modules are in some of them
    held: list[tuple[Any, Any]] = [
        (value, copy.copy(value))
        for values in attributes
        for value in values.values()
        if isinstance(value, list | dict)
    ]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, values in zip(modules, attributes, strict=True):
            module.__dict__.clear()
            module.__dict__.update(values)
        for value, before in held:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(before)
