"""Kinds of option values with units: durations, bandwidths, factors, shares, and ranges of numbers of workers."""

from __future__ import annotations

import math
import re

import click

_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*"
_MICROSECONDS = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6}
_BYTES = {"": 1e0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MOST_WORKERS = 1_000_000


class Duration(click.ParamType[float]):
    """``5us``, ``0.3 ms``, ``800ns``: microseconds, at least 0."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(_NUMBER + r"([a-zµμ]+)\s*", str(value).lower())
        if found is None or found[2] not in _MICROSECONDS:
            self.fail(f"{str(value)!r} is not a duration with a unit (ns, us, ms, s) such as 5us.", param, ctx)
        return _finite(self, float(found[1]) * _MICROSECONDS[found[2]], value, param, ctx)


class Bandwidth(click.ParamType[float]):
    """``10Gbit/s``, ``1.25 GB/s``, ``100Gbps``: megabytes (10^6 bytes) per second, more than 0."""

    name = "bandwidth"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        # Capitals tell bits from bytes where the unit is a single letter (Gb, GB); prefixes are taken in either case.
        found = re.fullmatch(_NUMBER + r"([kmgtKMGT]?i?)(bit|bits|b|B|byte|bytes)(/s|ps)\s*", str(value))
        if found is None or found[2].lower() not in _BYTES:
            self.fail(f"{str(value)!r} is not a bandwidth such as 10Gbit/s, 10Gb/s or 1.25GB/s.", param, ctx)
        bits = 8 if found[3] in ("bit", "bits", "b") else 1
        speed = float(found[1]) * _BYTES[found[2].lower()] / bits / 1e6
        if speed == 0:
            self.fail(f"{str(value)!r} lets nothing through; a bandwidth is more than 0.", param, ctx)
        return _finite(self, speed, value, param, ctx)


class Factor(click.ParamType[float]):
    """``3x`` or ``3``: at least 1."""

    name = "factor"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(_NUMBER + r"[x×]?\s*", str(value).lower())
        if found is None or float(found[1]) < 1:
            self.fail(f"{str(value)!r} is not a factor of at least 1 such as 3x.", param, ctx)
        return _finite(self, float(found[1]), value, param, ctx)


class Jitter(click.ParamType[float]):
    """``0.05`` or ``5%``: a coefficient of variation from 0 to 1."""

    name = "jitter"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(_NUMBER + r"(%?)\s*", str(value).lower())
        share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
        if not 0 <= share <= 1:
            self.fail(f"{str(value)!r} is not a share from 0 to 1 such as 0.05 or 5%.", param, ctx)
        return share


class Workers(click.ParamType[tuple[int, ...]]):
    """``2..4096``: 2, 4, 8 and so on by doubling, both ends among them; or a list, ``2,4,8``; rising, each once."""

    name = "workers"

    def __init__(self, least: int = 1, most: int = MOST_WORKERS) -> None:
        self.least, self.most = least, most

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        found: set[int] = set()
        for part in text.split(","):
            if not re.fullmatch(r"\s*[0-9]{1,9}\s*(\.\.\s*[0-9]{1,9}\s*)?", part):
                self.fail(f"{text!r} is not a range such as 2..4096 or a list such as 2,4,8.", param, ctx)
            first, last = (int(end) for end in (part.split("..") * 2)[:2])
            if first > last:
                self.fail(f"{part.strip()!r} goes down; write {last}..{first}.", param, ctx)
            if first < self.least or last > self.most:
                self.fail(f"{part.strip()!r} is not within {self.least} to {self.most}.", param, ctx)
            while first < last:
                found.add(first)
                first *= 2
            found.add(last)
        return tuple(sorted(found))


def _finite(
    kind: click.ParamType, number: float, value: object, param: click.Parameter | None, ctx: click.Context | None
) -> float:
    if not math.isfinite(number):
        kind.fail(f"{str(value)!r} is too large.", param, ctx)
    return number
