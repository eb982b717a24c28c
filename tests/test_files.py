"""Files are whole or absent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wholebatch import files
from wholebatch.files import append_line, is_empty, remove_parts, replacing, write, write_json
from wholebatch.runs.folder import Run

# The module alone: with its package come torch and scikit-learn, which take seconds to import.
WRITE_FOREVER = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", sys.argv[2])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
sizes = [1, 4_000_000]
print("ready", flush=True)
for i in range(10**9):
    files.write(Path(sys.argv[1]), bytes([i % 2]) * sizes[i % 2])
"""


def fails(number: int):
    """A system call that refuses with this error number."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "file"
    write(path, "old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("links", [True, False])
def test_the_old_file_is_kept_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool):
    """Also where a process was killed right after that, and where a file system has no second names."""
    path, old = tmp_path / "file", tmp_path / "old"
    if not links:
        monkeypatch.setattr(os, "link", fails(errno.EPERM))
    for content in ("one", "two"):
        write(path, content, keep=old)
    assert (path.read_text(), old.read_text()) == ("two", "one")
    old.unlink()
    if links:
        os.link(path, old)
    else:
        os.rename(path, old)
    write(path, "three", keep=old)
    assert (path.read_text(), old.read_text()) == ("three", "two")
    assert sorted(os.listdir(tmp_path)) == ["file", "old"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
    path = tmp_path / "file"
    write(path, "old")
    monkeypatch.setattr(os, call, fails(errno.ENOSPC))
    with pytest.raises(OSError) as raised:
        write(path, "new")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_while_writing_leaves_nothing(tmp_path: Path):
    path = tmp_path / "file"

    def interrupted() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_an_old_or_a_new_file(tmp_path: Path):
    path = tmp_path / "file"
    for _ in range(5):
        command = [sys.executable, "-c", WRITE_FOREVER, str(path), files.__file__]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        while not path.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        assert content in (b"\0", b"\1" * 4_000_000)
        remove_parts(tmp_path)
        assert os.listdir(tmp_path) == ["file"]
        path.unlink()


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_link_goes_on_pointing_at_its_file(tmp_path: Path):
    path, link = tmp_path / "file", tmp_path / "link"
    write(path, "old")
    link.symlink_to(path)
    write(link, "new")
    assert link.is_symlink()
    assert path.read_text() == "new"


def test_a_line_that_does_not_fit_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "lines"
    append_line(path, "first")
    real = os.write
    calls: list[bytes] = []

    def full_after_half(handle: int, content: bytes) -> int:
        calls.append(content)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, content[:2])

    monkeypatch.setattr(os, "write", full_after_half)
    with pytest.raises(OSError) as raised:
        append_line(path, "second")
    assert raised.value.filename == str(path)
    assert path.read_text() == "first\n"


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"value": float("nan")})
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_fills_no_folder(tmp_path: Path):
    assert is_empty(tmp_path)
    (tmp_path / ".config.json.123.part").touch()
    assert is_empty(tmp_path)
    (tmp_path / "notes.part").touch()
    assert not is_empty(tmp_path)


def test_a_run_begins_where_a_killed_process_began_its_first_file(tmp_path: Path):
    """A rank that is killed as it writes config.json is started again, and finds what it left of it."""
    run = Run(tmp_path)
    (tmp_path / ".config.json.123.part").write_text('{"form')
    run.check_new()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is not empty, and holds no run of wholebatch"):
        run.check_new()
