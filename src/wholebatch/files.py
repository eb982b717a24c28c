"""Files that are whole or absent: a killed process or a full disk leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTS = ".*.part"


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[BinaryIO]:
    """Write a new ``path`` whole: into a hidden file beside it, to the disk, then renamed over the old one.

    A path that is there and no regular file (a pipe, ``/dev/stdout``) is written to as it is: it has no half.

    Args:
        keep: the name in the same folder that the old file gets. The old one has it before the new one takes its place,
            so at no moment is there neither.

    Raises:
        OSError: with ``path`` as its file name, also where the system named none (a full disk); nothing is left behind.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        path = path.resolve()  # a link keeps pointing at the file that is replaced
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                _rename(path, keep)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write(path: Path, content: bytes | str, keep: Path | None = None) -> None:
    """``content`` as the whole of ``path``; see :func:`replacing`."""
    with replacing(path, keep) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON; a number that is not finite is refused, since JSON has none."""
    write(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """One more line at the end of ``path``, in a single write.

    Raises:
        OSError: with ``path`` as its file name; a part of a line that a full disk took is cut off again.
    """
    content = line.encode() + b"\n"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            before = os.fstat(handle).st_size
            try:
                if os.write(handle, content) != len(content):
                    os.ftruncate(handle, before)
                    os.write(handle, content)  # now the system names its reason
            except OSError:
                os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_parts(folder: Path) -> None:
    """Take away what processes that were killed in the midst of :func:`replacing` left in ``folder``."""
    for part in folder.glob(PARTS):
        part.unlink(missing_ok=True)


def is_empty(folder: Path) -> bool:
    """Whether nothing is in ``folder`` but what killed processes left in the midst of :func:`replacing`."""
    parts = set(folder.glob(PARTS))
    return all(path in parts for path in folder.iterdir())


def sha256(content: bytes) -> str:
    """The SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _rename(path: Path, keep: Path) -> None:
    """Give ``path`` the name ``keep`` too; where a file system has no second names, in place of its own."""
    second = keep.with_name(f".{keep.name}.{os.getpid()}.part")
    try:
        second.unlink(missing_ok=True)
        os.link(path, second)
    except OSError:
        os.replace(path, keep)
    else:
        os.replace(second, keep)
        second.unlink(missing_ok=True)  # it stays where both were names of one file already


def _sync_folder(folder: Path) -> None:
    """Make a rename last, where the system can (Windows cannot open a folder)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
