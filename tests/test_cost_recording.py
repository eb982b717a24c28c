"""The recording of costs as a file: it comes back as it was, and what is no recording is refused in one sentence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from wholebatch.cost import recording
from wholebatch.cost.recording import Recording, here, load
from wholebatch.cost.verticals import VERTICALS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "recording.json"
    Recording(origin=here(["wholebatch", "compare", "my table.csv"])).save(path)
    return path


def test_it_comes_back_as_it_was(file: Path):
    loaded = load(file)
    assert loaded.origin.command == "wholebatch compare 'my table.csv'"
    assert loaded.origin.versions["wholebatch"] == loaded.wholebatch == version("wholebatch")
    assert loaded.origin.cores >= 1
    assert loaded.origin.processor
    assert all(getattr(loaded, name) is None for name in VERTICALS)
    again = file.with_name("again.json")
    loaded.save(again)
    assert again.read_bytes() == file.read_bytes()


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/wholebatch", "plan", "--workers", "2..4", "a b"])
    assert here().command == "wholebatch plan --workers 2..4 'a b'"


def replaced(**changes: Any) -> Callable[[bytes], bytes]:
    """Changes entries at the top; ``None`` takes one away."""

    def change(content: bytes) -> bytes:
        value = json.loads(content) | changes
        return json.dumps({name: entry for name, entry in value.items() if entry is not None}).encode()

    return change


def with_cores(text: str) -> Callable[[bytes], bytes]:
    return lambda content: replaced(origin={**json.loads(content)["origin"], "cores": "CORES"})(content).replace(
        b'"CORES"', text.encode()
    )


SPOILED: list[tuple[str, Callable[[bytes], bytes], tuple[str, ...]]] = [
    ("newer", replaced(version=2, wholebatch="9.1"), ("version 2", "9.1", "up to version 1", "pip install")),
    ("no version", replaced(version=None), ("version is None", "whole number")),
    ("version 0", replaced(version=0), ("version is 0",)),
    ("version true", replaced(version=True), ("version is True",)),
    ("version as text", replaced(version="1"), ("version is '1'",)),
    ("of a run", replaced(format="wholebatch recording"), ("no wholebatch cost",)),
    ("no format", replaced(format=None), ("no wholebatch cost",)),
    ("a list", lambda content: b"[1, 2]", ("no wholebatch cost",)),
    ("a table", lambda content: b"a,b\n1,2\n", ("no JSON",)),
    ("a picture", lambda content: b"\x89PNG\r\n\x1a\n\x00", ("no JSON",)),
    ("empty", lambda content: b"", ("no JSON",)),
    ("cut short", lambda content: content[:-20], ("cut short",)),
    ("nested deep", lambda content: b"[" * 200_000, ("no JSON",)),
    ("no origin", replaced(origin=None), ("corrupt", "origin")),
    ("an unknown entry", replaced(hook="os.system"), ("corrupt", "hook")),
    ("another kind of entry", replaced(timeline=3), ("corrupt", "timeline")),
    ("NaN", with_cores("NaN"), ("no JSON", "NaN")),
    ("an infinite number", with_cores("-Infinity"), ("no JSON", "-Infinity")),
    ("a number beyond double", with_cores("1e999"), ("corrupt", "cores")),
]


@pytest.mark.parametrize(("spoil", "words"), [s[1:] for s in SPOILED], ids=[s[0] for s in SPOILED])
def test_what_is_no_recording_is_refused(file: Path, spoil: Callable[[bytes], bytes], words: tuple[str, ...]):
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError) as refused:
        load(file)
    said = str(refused.value)
    assert said.startswith(str(file))
    assert "\n" not in said
    for word in words:
        assert word in said


def test_a_missing_file_is_the_systems_to_tell(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_neither_written_nor_read(
    file: Path, value: float, monkeypatch: pytest.MonkeyPatch
):
    """pydantic would write null, which no reader takes for a number: the file would be lost."""
    before = file.read_bytes()
    loaded = load(file)
    monkeypatch.setattr(
        Recording, "model_dump", lambda self: {"origin": {}, "plan": {"rows": [{"wait": 1.0}, {"wait": value}]}}
    )
    with pytest.raises(ValueError, match=r"plan\.rows\.1\.wait is -?(nan|inf)"):
        loaded.save(file)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match=r"is corrupt: plan\.rows\.1\.wait is"):
        load(file)


def test_a_machine_that_does_not_name_its_processor(monkeypatch: pytest.MonkeyPatch):
    def unreadable(self: Path) -> str:
        raise FileNotFoundError(2, "no such file", str(self))

    monkeypatch.setattr(Path, "read_text", unreadable)
    assert recording.processor() != ""
