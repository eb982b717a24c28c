"""Progress, Ctrl-C and errors in the midst of an epoch: the net is as after the last whole one."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import pytest
import torch

from forks import server
from oracle import engine_of, make_data, make_model
from small_problem import X, Y, copy_of, same
from wholebatch import Loss, Optimizer, Training
from wholebatch.feedforward.training import State


@pytest.fixture
def told_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress of the Python engines without their pause; the native one tells after a tenth of a second."""
    monkeypatch.setattr("wholebatch.feedforward.reference.PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr("wholebatch.feedforward.device.engine.LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("told_at_every_step")
def test_progress_counts_examples(engine: str):
    model = make_model((6, 300, 300, 3), "batch", "before", "tanh", dtype=torch.float64)
    examples = 10000 if engine == "native" else 600
    rows = np.random.default_rng(0).integers(0, 90, examples)
    told: list[tuple[int, int, float]] = []

    def progress(epoch: int, done: int, mean: float) -> None:
        told.append((epoch, done, mean))

    history = model.fit(
        X[rows], Y[rows], training=Training(epochs=2, batch_size=20), engine=engine, progress=progress, n_threads=1
    )
    assert {epoch for epoch, _, _ in told} == {1, 2}
    for epoch in (1, 2):
        done = [examples for number, examples, _ in told if number == epoch]
        assert done == sorted(set(done))
        assert 0 < done[0] <= done[-1] <= examples
    assert all(math.isfinite(mean) and mean > 0 for _, _, mean in told)
    assert len(history.epochs) == 2


@pytest.mark.usefixtures("told_at_every_step")
def test_an_error_in_progress_leaves_the_last_whole_epoch(engine: str):
    class OwnError(Exception):
        pass

    model = make_model((6, 300, 300, 3), "batch", "before", "tanh", dtype=torch.float64)
    rows = np.random.default_rng(0).integers(0, 90, 40000 if engine == "native" else 600)
    states: list[State] = []

    def progress(epoch: int, done: int, mean: float) -> None:
        if epoch == 2:
            raise OwnError

    with pytest.raises(OwnError):
        model.fit(
            X[rows], Y[rows], training=Training(epochs=2, batch_size=100), engine=engine, progress=progress,
            after_epoch=states.append, n_threads=1,
        )  # fmt: skip
    kept = {n.removeprefix("model."): t for n, t in states[0].tensors.items() if n.startswith("model.")}
    assert same(copy_of(model), kept)
    assert not model.training


def be_interrupted(engine: str, batch: int, pipe: Connection) -> None:
    """In a process of its own: an epoch of minutes, what became of it, and another one after it."""
    for number in (1, 2):
        os.dup2(pipe.fileno(), number)
    loss, optimizer = Loss("cross_entropy"), Optimizer("adam", 1e-4)
    model = make_model((64, 256, 256, 5), "batch", "before", "relu", dtype=torch.float32, dropout=0.1)
    data = make_data(model, loss, 2000)
    runner = engine_of(engine, model, loss, optimizer, n_threads=2)

    def epoch(examples: int, progress: Callable[[int, float], None] | None = None) -> None:
        order = np.arange(examples) % 2000
        offsets = np.arange(0, examples + 1, batch)
        runner.train_epoch(data, order, offsets, np.full(len(offsets) - 1, 1e-4), progress)

    def everything() -> dict[str, torch.Tensor]:
        return {**model.state_dict(), **runner.optimizer_state, "step": torch.tensor(runner.step)}

    epoch(2000)
    before = {name: tensor.clone() for name, tensor in everything().items()}
    try:
        epoch(20_000_000, lambda done, mean: print("RUNNING", done, flush=True))
        print("FINISHED", flush=True)
    except KeyboardInterrupt:
        print("INTERRUPTED", flush=True)
        print("KEPT", all(torch.equal(tensor, before[name]) for name, tensor in everything().items()), flush=True)
        epoch(2000)
        print(
            "GOES ON", any(not torch.equal(tensor, before[name]) for name, tensor in everything().items()), flush=True
        )


@pytest.mark.parametrize("batch", [100, 2000])
def test_ctrl_c_answers_at_once_and_leaves_the_last_whole_epoch(engine: str, batch: int):
    """In the midst of an epoch of minutes. Promised is a second; five are allowed for a machine that is busy."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = server().Process(target=be_interrupted, args=(engine, batch, theirs))
    process.start()
    theirs.close()
    try:
        with open(ours.fileno(), closefd=False) as said:
            first = said.readline()
            assert first.startswith("RUNNING"), first
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            sent, waited, lines = time.monotonic(), math.inf, []
            for line in said:
                if line.startswith("INTERRUPTED"):
                    waited = time.monotonic() - sent
                if not line.startswith("RUNNING"):
                    lines.append(line.split())
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0, lines
    assert lines == [["INTERRUPTED"], ["KEPT", "True"], ["GOES", "ON", "True"]]
    assert waited < 5
