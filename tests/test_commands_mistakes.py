"""A person's mistakes: one clear sentence on stderr, a non-zero exit, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch

from processes import start
from said import Said, run_command
from tables_for_runs import QUICK, quick_settings, small_frame, write_small
from wholebatch import runs

Command = Callable[..., Said]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs ``wholebatch`` with these arguments in this process, in the folder ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        return run_command(capsys, *arguments)

    return run


def write_table(path: Path, **columns: Any) -> None:
    """:func:`small_frame` with these columns in place of its own (or besides), as CSV."""
    frame = small_frame().drop("value", "up", "red", "weight")
    frame.with_columns(*(pl.Series(name, values) for name, values in columns.items())).write_csv(path)


def edited(values: list[Any], row: int, value: Any) -> list[Any]:
    return [*values[:row], value, *values[row + 1 :]]


FRAME = small_frame()
KINDS = FRAME["kind"].to_list()
NUMBERS = [str(value) for value in FRAME["a"].to_list()]

TABLES: list[tuple[str, dict[str, Any] | str, list[str], tuple[str, ...]]] = [
    ("no such column", {}, ["--target", "knid"], ("'knid'", "did you mean 'kind'")),
    ("no such column to ignore", {}, ["--ignore", "colour"], ("'colour'", "did you mean 'color'")),
    ("empty file", "", [], ("empty", "no header and no rows")),
    ("a header only", "a,b,kind\n", [], ("has no rows",)),
    ("one row", "a,kind\n1,yes\n", [], ("has 1 row", "at least 2")),
    ("two rows, and three parts", "a,kind\n1,yes\n2,no\n", [], ("2 rows", "--validation-fraction 0")),
    ("one class only", {"kind": ["yes"] * 80}, [], ("one class only", "'yes'")),
    ("one value only", {"v": [1.5] * 80}, ["--target", "v", "--task", "regression"], ("'v'", "same value")),
    ("all-missing column", {"gone": [None] * 80}, [], ("'gone'", "no value", "--ignore 'gone'")),
    ("inf", {"a": edited(NUMBERS, 70, "inf")}, [], ("'a'", "infinite", "row 71")),
    ("inf in the target", {"v": edited(NUMBERS, 4, "-inf")}, ["--target", "v"], ("'v'", "infinite", "row 5")),
    ("text in a number target", {"v": KINDS}, ["--target", "v", "--task", "regression"], ("'v'", "needs numbers")),
    ("text as weights", {"w": KINDS}, ["--weights-column", "w"], ("'w'", "'no'", "not a number")),
    ("negative weights", {"w": [-1] * 80}, ["--weights-column", "w"], ("'w'", "-1 in row 1")),
    ("target with holes", {"kind": edited(KINDS, 9, None)}, [], ("'kind'", "1 of 80", "row 10", "--drop-missing")),
    ("classes for several columns", {}, ["--target", "a", "--task", "classification"], ("one target column",)),
    ("label smoothing of values", {"v": NUMBERS}, ["--target", "v", "--label-smoothing", "0.1"], ("label smoothing",)),
    ("a loss of another task", {}, ["--loss", "mse"], ("mse", "classification", "cross_entropy")),
    ("class weights of values", {"v": NUMBERS}, ["--target", "v", "--class-weight", "balanced"], ("regression",)),
    ("too little memory of a batch", {}, ["--batch-size", "1"], ("batch_size is 1", "at least 2")),
    ("patience and no rows to watch", {}, ["--patience", "3", "--validation-fraction", "0"], ("--patience 3",)),
    ("nesting of fractions", {}, ["--validation-fraction", "0.999"], ("row",)),
    ("loss not finite", {}, ["--learning-rate", "1e30"], ("not finite", "epoch 1, step", "layer")),
]


@pytest.mark.parametrize(("table", "options", "words"), [t[1:] for t in TABLES], ids=[t[0] for t in TABLES])
def test_a_wrong_table_or_setting(
    command: Command, tmp_path: Path, table: dict[str, Any] | str, options: list[str], words: tuple[str, ...]
):
    if isinstance(table, str):
        Path("table.csv").write_text(table)
    else:
        write_table(Path("table.csv"), **table)
    several = options[:2] == ["--target", "a"]
    target = [] if options[:1] == ["--target"] and not several else ["--target", "kind"]
    said = command("train", "table.csv", *target, *QUICK, *options, "--out", "run")
    said.check_mistake(*words)
    assert os.listdir(tmp_path) == ["table.csv"]


LINES: list[tuple[list[str], tuple[str, ...]]] = [
    (["train", "nowhere.csv", "--target", "kind"], ("no file 'nowhere.csv'",)),
    (["train", ".", "--target", "kind"], ("is a folder",)),
    (["train", "table.xlsx", "--target", "kind"], ("no file", "table.xlsx")),
    (["predict", "nowhere", "table.csv", "--out", "p.csv"], ("nowhere does not exist",)),
    (["report", "nowhere"], ("nowhere does not exist",)),
    (["train", "--resume", "nowhere"], ("nowhere does not exist",)),
]
USAGE: list[tuple[list[str], tuple[str, ...]]] = [
    (["train", "table.csv"], ("--target COLUMN",)),
    (["train", "--target", "kind"], ("no table",)),
    (["train", "table.csv", "--target", "kind", "--hidden", "8,0"], ("--hidden", "size 0", "at least 1")),
    (["train", "table.csv", "--target", "kind", "--hidden", "-8"], ("--hidden", "size -8")),
    (["train", "table.csv", "--target", "kind", "--hidden", "wide"], ("--hidden", "'wide'", "256,256")),
    (["train", "table.csv", "--target", "kind", "--epochs", "0"], ("--epochs", "0", "x>=1")),
    (["train", "table.csv", "--target", "kind", "--batch-size", "-4"], ("--batch-size", "-4")),
    (["train", "table.csv", "--target", "kind", "--threads", "0"], ("--threads", "0")),
    (["train", "table.csv", "--target", "kind", "--dropout", "1"], ("--dropout", "0<=x<1")),
    (["train", "table.csv", "--target", "kind", "--learning-rate", "0"], ("--learning-rate", "x>0")),
    (["train", "table.csv", "--target", "kind", "--activation", "swish"], ("--activation", "'silu'")),
    (["train", "table.csv", "--target", "kind", "--epoch", "3"], ("--epoch", "--epochs")),
    (["train", "table.csv", "--target", "kind", "--out", "a", "--resume", "b"], ("--out", "--resume")),
    (["predict", "run", "table.csv", "--out", "p.xlsx"], ("p.xlsx", ".parquet")),
    (["predict", "run", "table.csv"], ("--out",)),
    (["fly"], ("fly",)),
]


@pytest.mark.parametrize(("line", "words", "code"), [*((*c, 1) for c in LINES), *((*c, 2) for c in USAGE)])
def test_a_wrong_command_line(command: Command, tmp_path: Path, line: list[str], words: tuple[str, ...], code: int):
    write_small(Path("table.csv"))
    command(*line).check_mistake(*words, code=code)
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a, b, color and day."""
    folder = tmp_path_factory.mktemp("trained")
    write_small(folder / "table.csv", "a", "b", "color", "day", "kind")
    runs.begin(quick_settings(folder / "table.csv", "kind"), folder / "run").train()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of its folder, to be spoiled."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in (trained / "run").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_small(tmp_path / "table.csv", "a", "b", "color", "day", "kind")
    return folder


def spoil_json(**changes: Any) -> Callable[[Path], None]:
    """Changes entries of model.json, also nested ones (``a__b``)."""

    def spoil(run: Path) -> None:
        value = json.loads((run / "model.json").read_text())
        for names, change in changes.items():
            *outer, last = names.split("__")
            inner = value
            for name in outer:
                inner = inner[name]
            inner[last] = change
        (run / "model.json").write_text(json.dumps(value))

    return spoil


def spoil_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).write_bytes(change((run / name).read_bytes()))

    return spoil


def another_net(run: Path) -> None:
    """Another run's weights under this run's description."""
    values = safetensors.torch.load_file(run / "model.safetensors")
    safetensors.torch.save_file({n: v + 1 for n, v in values.items()}, run / "model.safetensors")


def one_more_class(run: Path) -> None:
    classes = json.loads((run / "model.json").read_text())["target"]["classes"]
    spoil_json(target__classes=[*classes, "zzz"])(run)


MODELS: list[tuple[str, Callable[[Path], Any], tuple[str, ...]]] = [
    ("net cut short", spoil_bytes("model.safetensors", lambda b: b[:-100]), ("model.safetensors", "cut short")),
    ("a bit of the net flipped", spoil_bytes("model.safetensors", lambda b: b[:-1] + b"?"), ("corrupt", "SHA-256")),
    ("net of another run", another_net, ("model.safetensors", "another run")),
    ("net foreign", spoil_bytes("model.safetensors", lambda b: b"\x80\x04pickle"), ("model.safetensors", "corrupt")),
    ("net empty", spoil_bytes("model.safetensors", lambda b: b""), ("model.safetensors", "corrupt")),
    ("description cut short", spoil_bytes("model.json", lambda b: b[:-100]), ("model.json", "cut short")),
    ("description foreign", spoil_bytes("model.json", lambda b: b'{"a": 1}'), ("model.json", "no wholebatch model")),
    ("description a list", spoil_bytes("model.json", lambda b: b"[]"), ("model.json", "no wholebatch model")),
    ("description nested deep", spoil_bytes("model.json", lambda b: b"[" * 200_000), ("model.json", "corrupt")),
    ("newer format", spoil_json(version=2, wholebatch="9.1"), ("version 2", "9.1", "up to version 1", "pip install")),
    ("sizes of 0", spoil_json(architecture__hidden_layer_sizes=[0]), ("hidden_layer_sizes[0] is 0",)),
    ("sizes that do not fit", spoil_json(architecture__hidden_layer_sizes=[8, 9]), ("model.safetensors holds",)),
    ("sizes beyond memory", spoil_json(architecture__in_features=10**12), ("model.safetensors holds",)),
    ("more classes than outputs", one_more_class, ("target needs 3 outputs", "its net has 2")),
    ("an unknown entry", spoil_json(hook="os.system"), ("hook",)),
    ("preprocessing of another kind", spoil_json(preprocessing={}), ("preprocessing",)),
    ("not finished", lambda run: (run / "model.json").unlink(), ("not finished", "wholebatch train --resume")),
]


@pytest.mark.parametrize(("spoil", "words"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_a_spoiled_model(command: Command, run: Path, spoil: Callable[[Path], Any], words: tuple[str, ...]):
    spoil(run)
    command("predict", str(run), "table.csv", "--out", "p.csv").check_mistake(*words)
    assert sorted(os.listdir(run.parent)) == ["run", "table.csv"]


def test_pickled_weights_are_not_run(command: Command, run: Path):
    """What torch.load would execute is not even read."""
    trap = b"cos\nsystem\n(S'touch executed'\ntR."
    (run / "model.safetensors").write_bytes(trap)
    description = json.loads((run / "model.json").read_text())
    from wholebatch.files import sha256

    spoil_json(net_sha256=sha256(trap))(run)
    assert description["net_sha256"] != sha256(trap)
    command("predict", str(run), "table.csv", "--out", "p.csv").check_mistake("corrupt")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop("a"), ("no column 'a'", "trained on")),
        (lambda t: t.drop("a", "color"), ("no columns 'a', 'color'",)),
        (lambda t: t.rename({"color": "colour"}), ("'color'", "did you mean 'colour'")),
        (lambda t: t.with_columns(a=pl.lit("many")), ("'a'", "'many'", "row 1", "not a number")),
        (lambda t: t.with_columns(a=pl.lit(float("inf"))), ("'a'", "infinite")),
        (lambda t: t.with_columns(day=pl.lit("soon")), ("'day'", "'soon'", "not a date")),
        (lambda t: t.head(0), ("no rows",)),
    ],
)
def test_a_table_that_the_model_cannot_use(
    command: Command, trained: Path, change: Callable[[pl.DataFrame], pl.DataFrame], words: tuple[str, ...]
):
    change(small_frame().select("a", "b", "color", "day")).write_csv("new.csv")
    command("predict", str(trained / "run"), "new.csv", "--out", "p.csv").check_mistake(*words)
    assert os.listdir(".") == ["new.csv"]


def test_a_folder_that_holds_a_run_is_refused(command: Command, run: Path):
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    said = command("train", "table.csv", "--target", "kind", *QUICK, "--out", str(run))
    said.check_mistake("already holds a run", f"--resume {run}", "another --out")
    assert {file.name: file.read_bytes() for file in run.iterdir()} == before


def test_a_folder_that_holds_something_else_is_refused(command: Command, tmp_path: Path):
    write_small(Path("table.csv"))
    said = command("train", "table.csv", "--target", "kind", *QUICK, "--out", str(tmp_path))
    said.check_mistake("not empty", "another --out")
    assert os.listdir(tmp_path) == ["table.csv"]


def test_other_settings_on_resuming_are_refused(command: Command, run: Path):
    said = command("train", "--resume", str(run), "--hidden", "4")
    said.check_mistake("--hidden 8,8, not with --hidden 4", "leave the option out")


def test_an_out_below_a_file(command: Command):
    write_small(Path("table.csv"))
    said = command("train", "table.csv", "--target", "kind", *QUICK, "--out", "table.csv/run")
    said.check_mistake("table.csv", "not a directory")
    command("train", "table.csv", "--target", "kind", *QUICK, "--out", "table.csv").check_mistake("not a folder")


@pytest.mark.parametrize(("number", "words"), [(errno.EACCES, "permission denied"), (errno.EROFS, "read-only")])
def test_an_unwritable_folder(
    command: Command, run: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, tmp_path: Path
):
    """Tests may run as root, who may write anywhere: the system's answer is played."""

    def mkdir(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "mkdir", mkdir)
    said = command("train", "table.csv", "--target", "kind", *QUICK, "--out", "new")
    said.check_mistake("'new'", words)
    real = os.open

    def refuse_writing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse_writing)
    said = command("predict", str(run), "table.csv", "--out", "p.csv")
    said.check_mistake("p.csv", words)
    assert sorted(os.listdir(tmp_path)) == ["run", "table.csv"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(command: Command):
    write_small(Path("table.csv"))
    Path("closed").mkdir(mode=0o500)
    said = command("train", "table.csv", "--target", "kind", *QUICK, "--out", "closed/run")
    said.check_mistake("closed", "permission denied")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(command: Command, run: Path):
    link = run.parent / "full.csv"
    link.symlink_to("/dev/full")
    said = command("predict", str(run), "table.csv", "--out", str(link))
    said.check_mistake("no space left on device", "free some space")


@pytest.mark.parametrize("limit", [200, 3000, 60_000])
def test_files_that_may_not_grow(tmp_path: Path, limit: int):
    """The system itself refuses to write on: at config.json, at a checkpoint, and at report.html."""
    table = write_small(tmp_path / "table.csv", "a", "color", "kind")
    out = tmp_path / "run"
    arguments = ["train", str(table), "--target", "kind", *QUICK, "--out", str(out)]
    said = Said(*start(tmp_path, *arguments, most_bytes=limit).wait())
    said.check_mistake("could not be written", "too large")
    assert not list(tmp_path.rglob(".*"))
    assert out.exists() == (limit > 3000)
    if out.exists():
        assert "3 of 3 epochs are kept" in said.err
        assert f"wholebatch train --resume {out}" in said.err
        names = {"config.json", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.previous.safetensors"}
        assert {file.name for file in out.iterdir()} == {*names, "model.safetensors", "model.json", "report.json"}
        runs.resume(out).train()
        assert (out / "report.html").stat().st_size > limit


def test_a_mistake_in_a_real_process(tmp_path: Path):
    line = [sys.executable, "-m", "wholebatch", "train", str(tmp_path / "nowhere.csv"), "--target", "kind"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    Said(done.returncode, done.stdout, done.stderr).check_mistake("there is no file")
