"""A run that was stopped at any moment goes on and ends with the same bits as one that was not."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch

from processes import Command, start
from tables_for_runs import quick_settings, write_small
from wholebatch import files, runs
from wholebatch.runs import checkpoint

TIMES = ("seconds", "examples_per_second")


def result(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for what it measured of time and place."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recording = json.loads((run / "report.json").read_text())
    history = [{n: v for n, v in row.items() if n not in TIMES} for row in recording["history"]]
    return {
        "net": (run / "model.safetensors").read_bytes(),
        "model": (run / "model.json").read_text(),
        "metrics": [{n: v for n, v in row.items() if n not in TIMES} for row in rows],
        "report": {n: v for n, v in recording.items() if n not in ("how", "history")} | {"history": history},
    }


def epochs_kept(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for_epoch(command: Command, run: Path, epochs: int) -> bool:
    """Whether the run got there; False where it ended before."""
    while epochs_kept(run) < epochs:
        if not command.process.is_alive():
            return False
        time.sleep(0.001)
    return True


@pytest.fixture
def options(tmp_path: Path, engine: str) -> list[str]:
    """A training of 60 short epochs, with all that has a state: dropout, optimizer, schedule, early stopping."""
    write_small(tmp_path / "table.csv")
    return [
        *(str(tmp_path / "table.csv"), "--target", "kind", "--test-fraction", "0.2", "--ignore", "value"),
        *("--hidden", "16,16", "--epochs", "60", "--batch-size", "16", "--patience", "100"),
        *("--engine", engine, "--quiet"),
    ]


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path: Path, options: list[str]):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, out, err = start(tmp_path, "train", *options, "--out", str(whole)).wait()
    assert (code, err) == (0, "")
    rng, unfinished = random.Random(0), 0
    begin, go_on = [*options, "--out", str(killed)], ["--resume", str(killed), "--quiet"]
    for at, arguments in ((1, begin), (8, go_on), (16, go_on), (24, go_on), (32, go_on)):
        command = start(tmp_path, "train", *arguments)
        reached = wait_for_epoch(command, killed, at)
        time.sleep(rng.uniform(0, 0.01))
        command.kill()
        assert reached
        unfinished += not (killed / "model.json").exists()
    assert unfinished >= 3, "most runs were over before they were killed"
    code, resumed_out, err = start(tmp_path, "train", *go_on).wait()
    assert (code, err) == (0, "")
    assert result(killed) == result(whole)
    assert [row["epoch"] for row in result(killed)["metrics"]] == list(range(1, 61))
    assert resumed_out.replace(str(killed), str(whole)) == out
    assert not list(killed.glob(".*.part"))


def test_ctrl_c_says_what_was_kept_and_how_to_go_on(tmp_path: Path, options: list[str]):
    run = tmp_path / "run"
    command = start(tmp_path, "train", *options, "--out", str(run))
    assert wait_for_epoch(command, run, 2)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGINT)
    code, out, err = command.wait()
    assert (code, out) == (130, "")
    kept = json.loads(safetensors_metadata(run / "checkpoint.safetensors")["state"])["history"]["epochs"]
    said = f"wholebatch: interrupted: {len(kept)} of 60 epochs are kept in {run}, go on with: "
    assert err == said + f"wholebatch train --resume {run}\n"
    assert not list(run.glob(".*.part"))


def safetensors_metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    metadata: dict[str, str] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    return metadata


class KilledError(BaseException):
    """Stands for a process that ends at this very call."""


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_small(folder / "table.csv", "a", "b", "color", "kind")
    runs.begin(quick_settings(folder / "table.csv", "kind", dropout=0.1, epochs=2), folder / "run").train()
    return folder


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(10))
def test_killed_around_each_file_it_writes(
    tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: bool
):
    """config, metrics, checkpoint, that one kept, another, model.safetensors, model.json, report.json, report.html."""
    run, real, calls = tmp_path / "run", os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == number + 1 and not after:
            raise KilledError
        real(source, target)
        if calls[0] == number + 1:
            raise KilledError

    settings = quick_settings(whole_run / "table.csv", "kind", dropout=0.1, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        patch.setattr(runs.Run, "forget", lambda self: None)  # a killed process does not tidy up
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        try:
            runs.begin(settings, run).train()
            assert number == 9
        except KilledError:
            assert number < 9
    if not (run / "config.json").exists():
        assert number == 0
        return
    runs.resume(run).train()
    assert result(run) == result(whole_run / "run")
    assert not list(run.glob(".*.part"))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch):
    run, real, calls = tmp_path / "run", os.fsync, [0]

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] > 6:  # file and folder of: config, metrics, the first checkpoint
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    settings = quick_settings(whole_run / "table.csv", "kind", dropout=0.1, epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"checkpoint\.safetensors"):
            runs.begin(settings, run).train()
    assert sorted(os.listdir(run)) == ["checkpoint.safetensors", "config.json", "metrics.jsonl"]
    runs.resume(run).train()
    assert result(run) == result(whole_run / "run")


def spoil(path: Path) -> None:
    """Change one bit of the last tensor."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("how", ["a bit", "cut short", "empty", "the history"])
def test_the_checkpoint_before_is_taken_where_the_newest_is_spoiled(tmp_path: Path, whole_run: Path, how: str):
    """One epoch is trained again, and the run ends with the same bits; the spoiled file is put aside, not kept."""
    run = tmp_path / "run"
    for name in ("config.json", "metrics.jsonl", "checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (run / name).write_bytes((whole_run / "run" / name).read_bytes())
    newest = run / "checkpoint.safetensors"
    if how == "a bit":
        spoil(newest)
    elif how == "the history":
        newest.write_bytes(newest.read_bytes().replace(b'\\"epoch\\": 2', b'\\"epoch\\": 7'))
    else:
        newest.write_bytes(newest.read_bytes()[: -20 if how == "cut short" else 0])
    spoiled = newest.read_bytes()
    assert runs.Run(run).epochs_kept == 1
    with pytest.warns(RuntimeWarning, match="corrupt.*goes on from the checkpoint before it, after epoch 1"):
        session = runs.resume(run)
    assert session.epochs_done == 1
    assert session.run.epochs_kept == 1
    session.train()
    assert result(run) == result(whole_run / "run")
    assert (run / "checkpoint.spoiled.safetensors").read_bytes() == spoiled
    assert runs.Run(run).epochs_kept == 2


def test_both_checkpoints_are_spoiled(tmp_path: Path, whole_run: Path):
    for name in ("config.json", "checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (tmp_path / name).write_bytes((whole_run / "run" / name).read_bytes())
        if name != "config.json":
            spoil(tmp_path / name)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is corrupt.*start the run anew"):
        runs.resume(tmp_path)


def test_a_checkpoint_of_the_version_before(tmp_path: Path, whole_run: Path):
    """Its SHA-256 is over the tensors alone."""
    (tmp_path / "config.json").write_bytes((whole_run / "run" / "config.json").read_bytes())
    path = whole_run / "run" / "checkpoint.safetensors"
    tensors, metadata = safetensors.torch.load_file(path), safetensors_metadata(path)
    metadata |= {"version": "1", "sha256": checkpoint._digest(tensors, "")}
    safetensors.torch.save_file(tensors, tmp_path / "checkpoint.safetensors", metadata)
    assert runs.resume(tmp_path).epochs_done == 2


def test_a_complete_run_resumed_makes_its_report_again(whole_run: Path):
    before = result(whole_run / "run")
    (whole_run / "run" / "report.html").unlink()
    session = runs.resume(whole_run / "run")
    assert session.complete
    session.train()
    assert result(whole_run / "run") == before
    assert (whole_run / "run" / "report.html").stat().st_size > 1_000_000


def test_the_best_epoch_is_what_is_kept(tmp_path: Path):
    """With patience, the model is the one of the epoch whose validation loss was least, not the last one."""
    write_small(tmp_path / "table.csv", "a", "b", "color", "kind")
    settings = quick_settings(tmp_path / "table.csv", "kind", learning_rate=0.3, epochs=30, patience=4)
    session = runs.begin(settings, tmp_path / "run")
    recording = session.train()
    losses = [row["validation_loss"] for row in recording.history]
    assert recording.stopped_early
    assert recording.best_epoch == 1 + losses.index(min(losses))
    assert len(losses) == recording.best_epoch + 4
    validation = next(score for score in recording.scores if score.part == "validation")
    assert validation.loss == pytest.approx(min(losses), rel=1e-6)  # float32 sums, the same rows in the same order
    state = safetensors.numpy.load_file(tmp_path / "run" / "checkpoint.safetensors")
    kept = safetensors.numpy.load_file(tmp_path / "run" / "model.safetensors")
    assert all((state[f"best.{name}"] == value).all() for name, value in kept.items())
    assert any((state[f"model.{name}"] != value).any() for name, value in kept.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": (4,)}, "--hidden 8,8, not with --hidden 4"),
        ({"seed": 7}, "--seed 0, not with --seed 7"),
        ({"clip": 1.0}, "no --clip, not with --clip 1.0"),
    ],
)
def test_other_settings_are_refused(whole_run: Path, change: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        runs.resume(whole_run / "run", lambda recorded: recorded.model_copy(update=change))


@pytest.mark.parametrize(("change", "words"), [("rows", "has 79 rows, .* with 80"), ("cell", "values are not those")])
def test_another_table_is_refused(tmp_path: Path, whole_run: Path, change: str, words: str):
    lines = (whole_run / "table.csv").read_text().splitlines()
    if change == "rows":
        lines.pop()
    else:
        lines[5] = "9.5" + lines[5][lines[5].index(",") :]
    (tmp_path / "other.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=words):
        runs.resume(
            whole_run / "run", lambda recorded: recorded.model_copy(update={"table": str(tmp_path / "other.csv")})
        )


def test_threads_may_differ_and_the_table_may_have_moved(tmp_path: Path, whole_run: Path):
    moved = tmp_path / "moved.csv"
    moved.write_text((whole_run / "table.csv").read_text())
    change = {"table": str(moved), "threads": 1}
    assert runs.resume(whole_run / "run", lambda recorded: recorded.model_copy(update=change)).complete


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:-9], "corrupt or cut short"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "do not have the SHA-256"),
        (lambda content: b"not a checkpoint", "corrupt or cut short"),
        (lambda content: content.replace(b'"version":"2"', b'"version":"9"'), r"version 9 .* reads up to version 2"),
        (lambda content: content.replace(b"wholebatch checkpoint", b"somebody's checkpoint"), "no checkpoint of"),
    ],
)
def test_a_spoiled_checkpoint_is_told(tmp_path: Path, whole_run: Path, spoil: Any, words: str):
    for name in ("config.json", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((whole_run / "run" / name).read_bytes())
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        runs.resume(tmp_path)
