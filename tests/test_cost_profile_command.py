"""``wholebatch profile`` and ``wholebatch.cost.record`` as a person meets them, mistakes included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import wholebatch
from said import Said, run_command
from wholebatch import cost
from wholebatch.cost.profile.console import tell
from wholebatch.cost.profile.measuring import profile
from wholebatch.cost.profile.record import Conversion, Estimate, Profile, Spread
from wholebatch.cost.profile.section import describe
from wholebatch.cost.profile.words import answer, interval, percent, seconds, within
from wholebatch.cost.recording import load

SOURCE = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 2))
plain = nn.Linear(4, 2)
x = torch.randn(16, 4)
number = 3

def step():
    model(x).sum().backward()

def setup():
    return step

def takes(batch, size=1):
    pass

def nothing():
    pass

def raises():
    model(x[:, 1:])

def leaves():
    raise SystemExit(3)

def forward_only():
    with torch.no_grad():
        model(x)

def no_norm():
    plain(x).sum().backward()

def generator():
    yield 1

async def coroutine():
    pass

def returns_model():
    return model

calls = 0

def ends():
    global calls
    calls += 1
    if calls > 5:
        raise StopIteration("no more data")
    step()
"""


Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs ``wholebatch profile`` in this process, where the module ``mine`` is."""
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "imports_none.py").write_text("import not_there_at_all\n")
    (tmp_path / "broken.py").write_text("def step(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("mine", "imports_none", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def run(*arguments: str) -> Said:
        return run_command(capsys, "profile", *arguments)

    yield run
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("target", ["mine:step", "mine:setup"])
def test_tables_recording_and_page(command: Command, tmp_path: Path, target: str) -> None:
    said = command(target, "--rounds", "6", "--out", "measured")
    assert said.code == 0, said.err
    assert "BatchNorm1d 16×8" in said.out
    assert "Normalisation takes" in said.out
    assert "recording measured/recording.json" in said.out
    assert "<!doctype html>" in (tmp_path / "measured" / "report.html").read_text().lower()
    recorded = load(tmp_path / "measured" / "recording.json").profile
    assert recorded is not None
    assert (recorded.target, recorded.rounds, recorded.models) == (target, 6, ["Sequential"])
    assert recorded.conversion is not None


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine", "'mine' names no function; write package.module:function"),
        ("mine.py:step", "names a file; name its module: mine:step"),
        ("not_there_at_all:step", "there is no module 'not_there_at_all'"),
        ("mine.inner:step", "there is no module 'mine.inner'"),
        (
            "imports_none:step",
            "importing imports_none raised ModuleNotFoundError: No module named 'not_there_at_all' (",
        ),
        ("broken:step", "importing broken raised SyntaxError"),
        ("mine:missing", "mine has no 'missing'; it has step, setup, takes"),
        ("mine:number", "mine:number is of type int and cannot be called"),
        ("mine:takes", "mine:takes takes arguments (batch); name a function without any"),
        ("mine:nothing", "mine:nothing called no torch.nn.Module"),
        ("mine:raises", "mine:raises raised RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ("mine:raises", "mine.py:23, in raises)"),
        ("mine:leaves", "mine:leaves raised SystemExit: 3 ("),
        ("mine:forward_only", "mine:forward_only took no derivative"),
        ("mine:generator", "mine:generator returned a generator"),
        ("mine:coroutine", "mine:coroutine returned a coroutine"),
        ("mine:returns_model", "what mine:returns_model returned (Sequential) takes arguments"),
        ("mine:ends", "mine:ends raised StopIteration: no more data"),
    ],
)
def test_mistakes_are_one_sentence(command: Command, tmp_path: Path, target: str, words: str) -> None:
    said = command(target, "--out", "measured")
    assert said.code == 1
    assert said.err.startswith("wholebatch: ")
    assert said.err.count("\n") == 1, said.err
    assert words in said.err
    assert said.out == ""
    assert not (tmp_path / "measured").exists()


def test_no_normalisation_is_an_answer(command: Command, tmp_path: Path) -> None:
    said = command("mine:no_norm", "--out", "measured")
    assert said.code == 0
    assert "mine:no_norm calls no normalisation layer" in said.out
    recorded = load(tmp_path / "measured" / "recording.json").profile
    assert recorded is not None
    assert (recorded.layers, recorded.conversion) == ([], None)


def test_too_few_rounds_and_a_taken_folder(command: Command, tmp_path: Path) -> None:
    assert command("mine:step", "--rounds", "5").code == 2
    (tmp_path / "recording.json").write_text("{}")
    said = command("mine:step", "--out", ".")
    assert said.code == 1
    assert "already holds a recording.json" in said.err


def test_compiled_models_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(16, 4)
    with pytest.raises(ValueError, match=r"runs its model through torch\.compile"):
        profile(lambda: compiled(x).sum().backward(), "compiled", rounds=6)
    assert not model[1]._forward_hooks


def test_torchrun(tmp_path: Path) -> None:
    """Ranks that open no group of their own find each other over torchrun's store; rank 0 alone tells."""
    (tmp_path / "mine.py").write_text(SOURCE)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    arguments = ["-m", "wholebatch", "profile", "mine:step", "--rounds", "6", "--out", "measured"]
    ended = subprocess.run(
        [*launch, *arguments],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("recording measured/recording.json") == 1
    recorded = json.loads((tmp_path / "measured" / "recording.json").read_text())["profile"]
    assert [rank["rank"] for rank in recorded["ranks"]] == [0, 1]
    assert recorded["slowest"] is None


def train(recorder: cost.Recorder, model: nn.Module, steps: int) -> None:
    for _ in range(steps):
        model(torch.randn(16, 4)).sum().backward()
        recorder.step()


def test_a_loop_is_recorded(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8))
    path = tmp_path / "recording.json"
    with wholebatch.cost.record(model, path) as recorder:
        train(recorder, model, 14)
    recorded = load(path).profile
    assert recorded == recorder.recording.profile
    assert recorded is not None
    assert [(layer.name, layer.kind, layer.shape, layer.calls) for layer in recorded.layers] == [
        ("1", "GroupNorm", [16, 8], 1)
    ]
    assert recorded.rounds == 6
    assert recorded.overhead is not None
    assert recorded.conversion is None
    assert not model[1]._forward_hooks
    assert not model[1]._forward_pre_hooks


def test_mistakes_with_record() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GroupNorm(2, 8))
    with (
        pytest.raises(ValueError, match=r"2 steps were marked; call recorder.step\(\)"),
        cost.record(model) as recorder,
    ):
        train(recorder, model, 2)
    assert not model[1]._forward_hooks
    with pytest.raises(RuntimeError, match="there is no recording"):
        recorder.recording  # noqa: B018
    with pytest.raises(TypeError, match=r"record takes a torch\.nn\.Module, and got a function"), cost.record(train):
        pass
    with pytest.raises(KeyError), cost.record(model):
        raise KeyError
    assert not model[1]._forward_hooks


def test_strings_from_outside_stay_text() -> None:
    name = "<script>alert(1)<-script>"
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 8))
    model.add_module(name, nn.BatchNorm1d(8))
    x = torch.randn(16, 4)
    measured = profile(lambda: model(x).sum().backward(), name, rounds=6)
    assert measured is not None
    section = describe(measured)
    assert name in [row[0] for row in section.shown[0].table.rows]  # the page escapes what is a cell
    assert len(section.shown) == 3
    for shown in section.shown:
        assert "<script" not in shown.picture.figure.to_json()
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    for part in tell(measured):
        console.print(part)
    assert name in console.export_text()
    console.file.close()


def estimated(median: float, half: float) -> Estimate:
    return Estimate(median=median, low=median - half, high=median + half, pairs=20)


@pytest.mark.parametrize(
    ("saving", "words"),
    [
        (estimated(0.12, 0.02), "converting (1 layer) saves 12 % ± 2.0 % of it, measured"),
        (estimated(-0.12, 0.02), "converting (1 layer) makes it slower by 12 % ± 2.0 %, measured"),
        (
            estimated(0.01, 0.02),
            "converting (1 layer) makes no difference that could be measured (-1.0 % to 3.0 % of it)",
        ),
    ],
)
def test_the_answer_claims_no_more_than_was_measured(saving: Estimate, words: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8))
    x = torch.randn(16, 4)
    measured = profile(lambda: model(x).sum().backward(), "step", rounds=6)
    assert isinstance(measured, Profile)
    step = Spread(median=1, low=1, high=1)
    measured.conversion = Conversion(way="convert", layers=["1"], before=step, after=step, saving=saving)
    assert words in answer(measured)[0]


def test_numbers_in_words() -> None:
    assert [seconds(value) for value in (12.34, 0.1234, 12.3e-6, 1234.5)] == ["12.3 s", "123 ms", "12.3 µs", "1,234 s"]
    assert percent(0.012) == "1.2 %"
    assert percent(0.123) == "12 %"
    assert within(Spread(median=0.002, low=0.0015, high=1.5)) == "2 ms (1.5 to 1,500)"
    assert within(None) == "-"
    lopsided = Estimate(median=0.1, low=0.09, high=0.4, pairs=6)
    assert interval(lopsided) == "10 % (95 % interval 9.0 % to 40 %)"
