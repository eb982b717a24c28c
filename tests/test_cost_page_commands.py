"""What the measuring commands leave behind, and `wholebatch report`, which makes it again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from rich.cells import cell_len

from cost_recordings import record_all
from tables_for_runs import quick_settings, write_small
from wholebatch import files, kernels, runs
from wholebatch.commands import costs, main
from wholebatch.commands.folders import name_new
from wholebatch.cost.recording import Recording, here, load

Report = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Runs `wholebatch report`: its exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["report", *arguments])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err

    return run


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    if not kernels.native_available():
        pytest.skip("the compiled part is missing here")
    return record_all(tmp_path_factory.mktemp("tables"))


def empty() -> Recording:
    return Recording(origin=here(["wholebatch", "compare"]))


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_names_of_folders():
    assert name_new("costs", "profile-train:step/2").match("costs/profile-train-step-2-*")
    assert name_new("runs", "..").match("runs/run-*")
    assert name_new("costs", "W" * 300).name.startswith("W" * 80 + "-2")
    first = name_new("costs", "plan")
    first.mkdir(parents=True)
    assert name_new("costs", "plan") != first


def test_preparing_leaves_nothing_behind(tmp_path: Path):
    folder = costs.prepare(None, "plan")
    assert folder.match("costs/plan-*")
    assert costs.prepare(Path("a/b/c"), "plan") == Path("a/b/c")
    (tmp_path / "there").mkdir()
    costs.prepare(Path("there/deep"), "plan")
    assert listed(tmp_path) == ["there"]


@pytest.mark.parametrize("name", ["recording.json", "report.html", "trace.json"])
def test_nothing_is_written_over(tmp_path: Path, name: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(ValueError, match=f"out already holds a {name}; choose another --out"):
        costs.prepare(Path("out"), "plan")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_an_unwritable_place_is_told_before_the_measuring(tmp_path: Path):
    Path("file").write_text("")
    for out in ("file", "file/below", "/proc/nowhere/costs"):
        with pytest.raises(OSError) as refused:
            costs.prepare(Path(out), "plan")
        assert refused.value.filename is not None
    assert listed(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path: Path):
    (tmp_path / "theirs").mkdir(mode=0o555)
    with pytest.raises(PermissionError):
        costs.prepare(Path("theirs/mine"), "plan")
    with pytest.raises(PermissionError):
        costs.prepare(Path("theirs"), "plan")


def test_what_a_measurement_leaves(recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = costs.prepare(Path("out"), "compare")
    costs.finish(recording, folder, quiet=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["recording out/recording.json", "report out/report.html", "trace out/trace.json"]
    assert listed(tmp_path / "out") == ["recording.json", "report.html", "trace.json"]
    assert load(Path("out/recording.json")) == recording


def test_without_a_course_in_time_there_is_no_trace(capsys: pytest.CaptureFixture[str]):
    costs.finish(empty(), costs.prepare(None, "plan"), quiet=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["recording", "report"]
    (folder,) = Path("costs").iterdir()
    assert listed(folder) == ["recording.json", "report.html"]


def test_a_full_disk_keeps_what_was_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The recording is written first: what takes minutes to measure is not lost with a page."""

    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("wholebatch.cost.page.write", full)
    with pytest.raises(click.ClickException) as told:
        costs.finish(empty(), Path("out"), quiet=True)
    assert "free some space" in told.value.message
    assert "wholebatch report out/recording.json --out PAGE" in told.value.message
    assert listed(Path("out")) == ["recording.json"]
    assert capsys.readouterr().out == "recording out/recording.json\n"


def test_a_disk_full_from_the_start_leaves_no_part(monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        costs.finish(empty(), Path("out"), quiet=True)
    assert listed(Path("out")) == []


def test_the_same_page_and_trace_elsewhere(recording: Recording, report: Report, tmp_path: Path):
    costs.finish(recording, Path("out"), quiet=True)
    page, trace = Path("out/report.html").read_bytes(), Path("out/trace.json").read_bytes()
    shutil.move("out/recording.json", "sent.json")
    assert report("sent.json") == (0, "report report.html\n", "")
    assert Path("report.html").read_bytes() == page
    assert report("sent.json", "--out", "p.html", "--trace", "t.json") == (0, "trace t.json\nreport p.html\n", "")
    assert Path("p.html").read_bytes() == page
    assert Path("t.json").read_bytes() == trace
    Path("again").mkdir()
    shutil.copy("sent.json", "again/recording.json")
    assert report("again") == (0, "report again/report.html\n", "")
    assert report("again", "--trace", "only.json") == (0, "trace only.json\n", "")
    assert listed(Path("again")) == ["recording.json", "report.html"]


def test_the_tables_again(recording: Recording, report: Report, tmp_path: Path):
    recording.save(Path("recording.json"))
    code, said, err = report("recording.json", "--console")
    assert (code, err) == (0, "")
    assert recording.profile is not None
    assert all(layer.name in said for layer in recording.profile.layers)
    assert "batch norm" in said
    assert 80 < max(map(cell_len, said.splitlines())) <= costs.PIPED_WIDTH
    assert listed(tmp_path) == ["recording.json"]


def test_a_run_is_rendered_as_before(report: Report):
    write_small(Path("table.csv"))
    runs.begin(quick_settings("table.csv", "kind"), Path("run")).train()
    page = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    assert report("run") == (0, "report run/report.html\n", "")
    assert Path("run/report.html").read_bytes() == page
    shutil.move("run/report.json", "sent.json")
    assert report("sent.json", "--out", "p.html") == (0, "report p.html\n", "")
    assert Path("p.html").read_bytes() == page
    code, said, _ = report("sent.json", "--console")
    assert code == 0
    assert said.splitlines()[0].split() == ["part", "rows", "loss", "accuracy"]
    code, said, err = report("run", "--trace", "t.json")
    assert (code, said) == (2, "")
    assert "has no trace" in err


NEWER = '{"format": "wholebatch cost", "version": 9, "wholebatch": "7.0"}'
NEWER_RUN = '{"format": "wholebatch recording", "version": 9}'
MISTAKES: list[tuple[str, dict[str, str], list[str], tuple[str, ...]]] = [
    ("nowhere", {}, ["nowhere"], ("nowhere does not exist",)),
    ("a folder of neither", {"there/x": ""}, ["there"], ("there holds no run",)),
    ("a table", {"t.csv": "a,b\n1,2\n"}, ["t.csv"], ("t.csv", "no JSON")),
    ("other JSON", {"o.json": '{"format": "else"}'}, ["o.json"], ("o.json is no wholebatch cost",)),
    ("newer", {"n.json": NEWER}, ["n.json"], ("version 9", "by wholebatch 7.0", "pip install")),
    ("a newer run", {"n.json": NEWER_RUN}, ["n.json"], ("version 9", "pip install")),
    ("an unwritable page", {"r.json": "", "file": ""}, ["r.json", "--out", "file/p"], ("file/p", "another path")),
    ("an unwritable trace", {"r.json": "", "file": ""}, ["r.json", "--trace", "file/t"], ("file/t", "another path")),
    (
        "nothing to trace",
        {"e.json": ""},
        ["e.json", "--trace", "t", "--out", "p"],
        ("nothing to trace", "wholebatch timeline"),
    ),
]


@pytest.mark.parametrize(("given", "arguments", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_mistakes(
    recording: Recording,
    report: Report,
    tmp_path: Path,
    given: dict[str, str],
    arguments: list[str],
    words: tuple[str, ...],
):
    for name, content in given.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    for name, recorded in (("r.json", recording), ("e.json", empty())):
        if name in given:
            recorded.save(Path(name))
    before = listed(tmp_path)
    code, said, err = report(*arguments)
    assert (code, said) == (1, "")
    assert err.startswith("wholebatch: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert listed(tmp_path) == before


def test_a_trace_that_is_a_pipe(recording: Recording, report: Report):
    """`--trace /dev/stdout` is written to as it is."""
    recording.save(Path("recording.json"))
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    small = recording.model_copy(update={"comparison": None, "plan": None, "profile": None})
    small.save(Path("small.json"))
    try:
        code, said, err = report("small.json", "--trace", "pipe")
        assert (code, said, err) == (0, "trace pipe\n", "")
        assert json.loads(os.read(reader, 1 << 20))["displayTimeUnit"] == "ns"
    finally:
        os.close(reader)
