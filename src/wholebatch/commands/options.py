"""Kinds of option values that click has not."""

from __future__ import annotations

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
