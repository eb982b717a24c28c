"""The commands as a person uses them: what they print, what they leave, what they refuse to import."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import accuracy_score, r2_score

from processes import start
from tables_for_runs import QUICK, small_frame, write_small
from wholebatch.commands import main
from wholebatch.commands import train as train_command
from wholebatch.feedforward import settings as choices
from wholebatch.feedforward.spread import Sync
from wholebatch.feedforward.training import Schedule
from wholebatch.runs import Recording, Settings, session
from wholebatch.runs.ranks import Ranks
from wholebatch.runs.settings import Task


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """(lines on stdout, stderr) of a command that must succeed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    return said.out.splitlines(), said.err


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_does_not_import_torch():
    code = "import sys; from wholebatch.commands import main\ntry: main(sys.argv[1:])\n"
    code += "finally: print('torch' in sys.modules, 'polars' in sys.modules)"
    for arguments in (["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "False False"
        assert len(done.stdout.splitlines()) > 1


def test_options_are_the_settings():
    """Each setting is an option with the same default and the same choices, and each option a setting."""
    options = {p.name: p for p in train_command.train.params}
    beside = {"out", "resume", "tensorboard", "quiet", "processes", "timeout"}
    assert options.keys() - beside == Settings.model_fields.keys()
    defaults = train_command.train.make_context("train", ["table", "--target", "column"]).params
    for name, field in Settings.model_fields.items():
        if not field.is_required():
            assert defaults[name] == field.default, name
    literals = {
        "task": Task,
        "norm": choices.Norm,
        "norm_position": choices.NormPosition,
        "activation": choices.Activation,
        "optimizer": choices.OptimizerKind,
        "schedule": Schedule,
        "sync": Sync,
        "split": choices.Split,
        "matmul_precision": choices.MatmulPrecision,
    }
    for name, literal in literals.items():
        kind = options[name].type
        assert isinstance(kind, click.Choice)
        assert tuple(kind.choices) == get_args(literal), name
    assert ("auto", *get_args(choices.LossKind)) == train_command.LOSSES


def test_the_last_lines_are_for_scripts(capsys: pytest.CaptureFixture[str], tmp_path: Path, engine: str):
    arguments = ("--target", "species", "--test-fraction", "0.2", "--epochs", "30", "--engine", engine, "--out", "run")
    out, err = run(capsys, "train", "iris", *arguments)
    name, value = out[-2].rsplit(" ", 1)
    assert name == "test accuracy"
    assert float(value) >= 0.8
    assert out[-1] == f"report {Path('run/report.html')}"
    recording = Recording.load(Path("run/report.json"))
    assert recording.headline.score == pytest.approx(float(value), abs=5e-5)
    assert recording.headline.rows == 30
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert lines[0].startswith("epoch 1/30  loss ")
    assert lines[-1].startswith("epoch 30/30  loss ")
    assert len(lines) == 11
    assert "\x1b" not in err
    assert {file.name for file in Path("run").iterdir()} == {
        *("config.json", "checkpoint.safetensors", "checkpoint.previous.safetensors", "metrics.jsonl"),
        *("model.safetensors", "model.json", "report.json", "report.html"),
    }


def test_quiet_shows_the_result_only(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"))
    out, err = run(capsys, "train", "table.csv", "--target", "kind", *QUICK, "--out", "run")
    assert err == ""
    assert [line.rsplit(" ", 1)[0] for line in out] == ["validation accuracy", "report"]


def test_the_default_folder_is_new_each_time(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"))
    folders = [run(capsys, "train", "table.csv", "--target", "kind", *QUICK)[0][-1] for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(folder.startswith("report runs/table-") for folder in folders)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "-"])
def test_classes_with_probabilities(capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str):
    """The predicted file has the score that training reported; columns in another order, without the target."""
    run_here = ("--target", "kind", *QUICK, "--epochs", "30", "--validation-fraction", "0", "--out", "run")
    write_small(Path("table.csv"), "a", "b", "color", "day", "kind")
    run(capsys, "train", "table.csv", *run_here)
    small_frame().select("day", "color", "b", "a").write_parquet("new.parquet")
    out = "-" if suffix == "-" else f"p.{suffix}"
    code, said, err = start(tmp_path, "predict", "run", "new.parquet", "--out", out).wait()
    assert code == 0, err
    if suffix == "-":
        predicted = pl.read_csv(io.StringIO(said))
        assert err == ""
    else:
        predicted = pl.read_csv(out) if suffix == "csv" else pl.read_parquet(out)
        assert (said, err) == ("", f"80 rows predicted in {out}\n")
    assert predicted.columns == ["kind", "probability_no", "probability_yes"]
    chances = predicted.select("probability_no", "probability_yes").to_numpy()
    assert np.allclose(chances.sum(1), 1, atol=1e-12)  # float64 softmax: a few units of 2^-53
    assert (predicted["kind"] == np.array(["no", "yes"])[chances.argmax(1)]).all()
    reported = Recording.load(Path("run/report.json")).headline
    assert reported.part == "training"
    assert accuracy_score(small_frame()["kind"], predicted["kind"]) == pytest.approx(reported.score, abs=1e-12)


def test_values_come_in_the_tables_units(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "b", "color", "value")
    options = ("--epochs", "40", "--hidden", "32", "--validation-fraction", "0", "--dropout", "0")
    out, _ = run(capsys, "train", "table.csv", "--target", "value", *QUICK, *options, "--out", "run")
    assert out[0].startswith("training R2 ")
    run(capsys, "predict", "run", "table.csv", "--out", "p.csv")
    predicted, true = pl.read_csv("p.csv")["value"], small_frame()["value"]
    reported = Recording.load(Path("run/report.json")).headline.score
    # R2 of values in float64 against R2 of standardised float32: rounding of 2^-24 on numbers about 1
    assert r2_score(true, predicted) == pytest.approx(reported, abs=1e-5)
    assert reported is not None
    assert reported > 0.8


def test_several_labels(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"), "a", "color", "up", "red")
    labels = ("--target", "up", "--target", "red", "--epochs", "100", "--validation-fraction", "0")
    out, _ = run(capsys, "train", "table.csv", *QUICK, *labels, "--out", "run")
    assert out[0].startswith("training exact match ")
    run(capsys, "predict", "run", "table.csv", "--out", "p.csv")
    predicted, frame = pl.read_csv("p.csv"), small_frame()
    exact = ((predicted["up"] == frame["up"]) & (predicted["red"] == frame["red"])).mean()
    assert exact == pytest.approx(float(out[0].rsplit(" ", 1)[1]), abs=5e-5)
    assert exact > 0.8


def test_weights_ignored_columns_and_missing_targets(capsys: pytest.CaptureFixture[str]):
    """What is said on the command line reaches the training: rows, columns, weights."""
    early = pl.int_range(pl.len()) < 7
    small_frame().with_columns(kind=pl.when(early).then(None).otherwise(pl.col("kind"))).write_csv("table.csv")
    more = ("--drop-missing-target", "--ignore", "value", "--ignore", "up", "--weights-column", "weight")
    run(capsys, "train", "table.csv", "--target", "kind", *QUICK, *more, "--class-weight", "balanced", "--out", "run")
    recording = Recording.load(Path("run/report.json"))
    assert sum(score.rows for score in recording.scores) == 73
    assert [column.name for column in recording.columns] == ["a", "b", "color", "day", "red"]
    recorded = Settings.model_validate(json.loads(Path("run/config.json").read_text())["settings"])
    prepared, _, loss = session._build(recorded, Ranks())
    assert prepared.training.weight is not None
    assert set(prepared.training.weight) == {1.0, 2.0, 3.0}
    counts = np.bincount(prepared.training.y)
    assert loss.class_weights == pytest.approx(tuple(counts.sum() / (2 * counts)))


def test_nothing_of_the_rows_held_out_reaches_the_preparation(tmp_path: Path):
    """Rows held out may be changed at will: what was learned from the others stays the same to the bit."""
    frame = small_frame().select("a", "b", "color", "value")
    frame.write_csv("table.csv")
    settings = Settings(table="table.csv", target=("value",), test_fraction=0.2)
    first = session._build(settings, Ranks())[0]
    assert first.test is not None
    assert first.validation is not None
    held = np.isin(np.arange(80), [*first.test.rows, *first.validation.rows])
    changed = frame.with_columns(
        pl.when(pl.Series(held)).then(1e3 * pl.col(name) + 77).otherwise(pl.col(name)).alias(name)
        for name in ("a", "b", "value")
    )
    changed.write_csv("table.csv")
    second = session._build(settings, Ranks())[0]
    assert second.preprocessing.to_dict() == first.preprocessing.to_dict()
    assert second.target.to_dict() == first.target.to_dict()
    assert (second.training.x == first.training.x).all()
    assert (second.training.y == first.training.y).all()
    assert second.digest != first.digest


def test_tensorboard_events(capsys: pytest.CaptureFixture[str]):
    """One value per epoch, also where a killed run's epochs were written twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_small(Path("table.csv"))
    run(capsys, "train", "table.csv", "--target", "kind", *QUICK, "--out", "run", "--tensorboard")
    events = accumulator.EventAccumulator("run/tensorboard")
    events.Reload()
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "validation_score"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in rows]


def test_tensorboard_is_asked_for_and_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    write_small(Path("table.csv"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "table.csv", "--target", "kind", *QUICK, "--out", "run", "--tensorboard"])
    assert ended.value.code == 1
    assert "pip install 'wholebatch[tensorboard]'" in capsys.readouterr().err
    assert not Path("run").exists()


def test_the_report_can_be_made_again(capsys: pytest.CaptureFixture[str]):
    write_small(Path("table.csv"))
    run(capsys, "train", "table.csv", "--target", "kind", *QUICK, "--out", "run")
    page = Path("run/report.html").read_bytes()
    Path("run/report.html").unlink()
    Path("table.csv").unlink()
    assert run(capsys, "report", "run")[0] == [f"report {Path('run/report.html')}"]
    assert Path("run/report.html").read_bytes() == page


def test_digits_reach_the_demos_bar(capsys: pytest.CaptureFixture[str]):
    """`make demo`: at least 0.97 on rows that training never saw, whose preparation knew nothing of them either."""
    arguments = ("--target", "digit", "--test-fraction", "0.2", "--seed", "0", "--out", "run", "--quiet")
    out, _ = run(capsys, "train", "digits", *arguments)
    name, value = out[0].rsplit(" ", 1)
    assert name == "test accuracy"
    assert float(value) >= 0.97
