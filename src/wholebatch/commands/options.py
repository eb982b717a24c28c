"""Kinds of option values that click has not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click


class Sizes(click.ParamType[tuple[int, ...]]):
    """``256,256``: whole numbers of at least 1, or ``none``."""

    name = "sizes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        if text in ("", "none"):
            return ()
        try:
            sizes = tuple(int(part) for part in text.split(","))
        except ValueError:
            self.fail(f"{text!r} is not a list of whole numbers such as 256,256 (or none).", param, ctx)
        if min(sizes) < 1:
            self.fail(f"{text!r} has the size {min(sizes)}; every layer needs at least 1 neuron.", param, ctx)
        return sizes


class Names(click.ParamType[tuple[str, ...]]):
    """``batch,none``: names out of ``choices``, each at most once.

    Args:
        choices: that may be named.
    """

    name = "names"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        known = ", ".join(self.choices)
        for number, name in enumerate(names):
            if name not in self.choices:
                self.fail(f"{name!r} is none of {known}; name some of them, separated by commas.", param, ctx)
            if name in names[:number]:
                self.fail(f"{name!r} is named more than once; once is enough.", param, ctx)
        return names


class Numbers(click.ParamType[tuple[float, ...]]):
    """``0.003,0.01``: finite numbers above 0, each at most once."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        text = str(value).strip()
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            self.fail(f"{text!r} is not a list of numbers such as 0.003,0.01.", param, ctx)
        for number in numbers:
            if not (math.isfinite(number) and number > 0):
                self.fail(f"{text!r} has {number:g}; every number must be finite and above 0.", param, ctx)
        if len(set(numbers)) < len(numbers):
            self.fail(f"{text!r} has a number more than once; once is enough.", param, ctx)
        return numbers
