"""JSON files that say what they are: they open with ``format``, ``version`` and the ``wholebatch`` that wrote them."""

from __future__ import annotations

import json
from importlib.metadata import version as installed
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

Described = TypeVar("Described", bound=BaseModel)


def read_described(path: Path, kind: type[Described], name: str, version: int) -> Described:
    """Read the JSON file ``path`` of the format ``name``, up to ``version``.

    Raises:
        ValueError: no JSON, another format, a newer version (naming both and the remedy), or contents that do not fit.
        OSError: the file is missing or cannot be read.
    """
    try:
        value = json.loads(path.read_bytes(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # also of bytes that are no text
        raise ValueError(f"{path} is corrupt or cut short: it is no JSON ({one_line(error)})") from error
    if not isinstance(value, dict) or value.get("format") != name:
        raise ValueError(f"{path} is no {name}: its format is not {name!r}")
    found = value.get("version")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{path} is corrupt: its version is {found!r}, not a whole number of at least 1")
    if found > version:
        writer = value.get("wholebatch", "?")
        raise ValueError(
            f"{path} has version {found} of the format {name!r} (written by wholebatch {writer}), "
            f"but this is wholebatch {installed('wholebatch')}, which reads up to version {version}; "
            "upgrade it: pip install --upgrade wholebatch"
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise ValueError(f"{path} is corrupt: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """pydantic's first finding in one line: where, and what is wrong."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(map(str, fault["loc"])) or "the value"
    return f"{where}: {fault['msg']}"


def one_line(error: BaseException) -> str:
    """An error's message without line breaks; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")
