"""Does code that cannot be traced call a submodule as a whole, or reach into it?

Where the forward of a module cannot be traced, its children are traced on their own. What such a trace says holds only
if nobody takes the child apart from outside: ``self.block.conv(x)``, ``for layer in self.features``. The source tells:
this reads it, and is content only where nothing of the kind is there. In doubt it says that there is doubt.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from weakref import WeakKeyDictionary

from torch import nn

# With these a method can get at any submodule without naming it.
_DYNAMIC = frozenset(
    {
        "children",
        "named_children",
        "modules",
        "named_modules",
        "get_submodule",
        "_modules",
        "getattr",
        "__dict__",
        "vars",
    }
)
_READ: WeakKeyDictionary[type[nn.Module], Code] = WeakKeyDictionary()


@dataclass
class Code:
    """What the methods of a class do with submodules.

    Attributes:
        reached: names that are looked up on anything but ``self``.
        handled: names that are looked up on ``self`` other than to be called at once.
        iterates: goes over, or picks from, something that is a variable.
        doubt: why nothing can be said at all.
    """

    reached: set[str] = field(default_factory=set)
    handled: set[str] = field(default_factory=set)
    iterates: bool = False
    doubt: str | None = None


def doubt_whole(caller: nn.Module, path: Sequence[str], inner: Sequence[str], *, sequence: bool) -> str | None:
    """Why ``caller`` may take its submodule apart; None where it does not.

    Args:
        caller: a module whose forward cannot be traced.
        path: of the submodule in ``caller``.
        inner: the names within the submodule that must not be reached for.
        sequence: the submodule is an ``nn.Sequential``, which can be gone over.
    """
    code, name = _read(type(caller)), type(caller).__name__
    if code.doubt:
        return code.doubt
    reached = sorted(code.reached.intersection(inner))
    if reached:
        return f"{name} may reach for .{reached[0]} of it"
    if sequence and (path[0] in code.handled if len(path) == 1 else code.iterates):
        return f"{name} may go over its layers one by one"
    return None


def _read(cls: type[nn.Module]) -> Code:
    """Forward, the methods of the class itself, and all that these name; not those that only build."""
    if cls in _READ:
        return _READ[cls]
    code = _READ[cls] = Code()
    waiting = ["forward", *(name for name, member in vars(cls).items() if inspect.isfunction(member))]
    seen: set[str] = set()
    while waiting and code.doubt is None:
        name = waiting.pop()
        if name in seen or name.lstrip("_").startswith(("init", "reset")):
            continue
        seen.add(name)
        for function in _definitions(cls, name):
            if function.__name__ != name:
                code.doubt = f"{cls.__name__}.{name} is wrapped by a decorator that hides its source"
                break
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            except (OSError, TypeError, SyntaxError):
                code.doubt = f"the source of {cls.__name__}.{name} cannot be read"
                break
            if function.__code__.co_varnames[:1] not in [("self",), ("cls",)] and function.__code__.co_argcount:
                code.doubt = f"{cls.__name__}.{name} calls its object something other than self"
                break
            _Reader(code, cls).visit(tree)
            waiting.extend(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return code


def _definitions(cls: type[nn.Module], name: str) -> Iterator[FunctionType]:
    """What ``name`` is in the class and in those it inherits from, for ``super()`` reaches them; torch's are known."""
    for base in cls.__mro__:
        member = None if base.__module__.startswith("torch.") else vars(base).get(name)
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        member = inspect.unwrap(member) if callable(member) else member
        if isinstance(member, FunctionType):
            yield member


class _Reader(ast.NodeVisitor):
    def __init__(self, code: Code, cls: type) -> None:
        self.code, self.cls = code, cls

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Attribute) and _is_self(node.func.value):
            self._dynamic(node.func.attr)  # self.child(x): called as a whole
        elif isinstance(node.func, ast.Name) and node.func.id == "super":
            return
        else:
            self.visit(node.func)
        for part in (*node.args, *node.keywords):
            self.visit(part)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._dynamic(node.attr)
        if _is_self(node.value):
            self.code.handled.add(node.attr)
        else:
            self.code.reached.add(node.attr)
            self.visit(node.value)

    def visit_Name(self, node: ast.Name) -> None:
        self._dynamic(node.id)
        if _is_self(node) and self.code.doubt is None:
            self.code.doubt = f"{self.cls.__name__} hands itself to other code"

    def visit_For(self, node: ast.For) -> None:
        self._loop(node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._loop(node.iter)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Name | ast.Subscript):  # stage[0], self.stages[0][1]
            self.code.iterates = True
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._loop(node.value)
        self.generic_visit(node)

    def _loop(self, over: ast.expr) -> None:
        # enumerate(stage) goes over its argument; self.stages and range(4) are no variables.
        parts = over.args if isinstance(over, ast.Call) else [over]
        if any(isinstance(part, ast.Name | ast.Subscript) for part in parts):
            self.code.iterates = True

    def _dynamic(self, name: str) -> None:
        if name in _DYNAMIC and self.code.doubt is None:
            self.code.doubt = f"{self.cls.__name__} looks submodules up by {name}"


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
