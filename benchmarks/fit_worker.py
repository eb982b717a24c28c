"""One whole fit in a process of its own.

``python -m benchmarks.fit_worker`` takes an :class:`Order` as JSON on its standard input and answers with one line. It
ends when its input is closed, hence also when the parent is killed. It stands on its cores before anything is imported
that makes threads.

Two fits go before the one that is timed: a small one, so that imports and the start of threads are nobody's cost, and
one of two epochs, whose memory is measured (what the timed one keeps of each epoch, to be scored later, would count).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import cores


@dataclass(frozen=True)
class Order:
    """What to fit: a table in a folder of ``.npy`` files, a recipe, a system, on which cores."""

    folder: str
    recipe: dict[str, Any]
    system: str
    norm: str
    seed: int
    cores: list[int]


@dataclass(frozen=True)
class Outcome:
    """A fit as it went. ``epoch_seconds[i]`` since its start until epoch i + 1 was done, ``scores[i]`` then on the
    test rows; ``peak_bytes``: how far a fit made the process grow in memory, None where the system does not tell.
    """

    seconds: float
    epoch_seconds: list[float]
    scores: list[float]
    peak_bytes: int | None


def fit(order: Order) -> Outcome:
    """Fit, then score the net of every epoch."""
    import numpy as np

    from benchmarks.fit_systems import FITS, Predict
    from benchmarks.fit_tables import FitTable, Recipe

    parts = {name: np.load(Path(order.folder) / f"{name}.npy") for name in ("x", "y", "x_test", "y_test")}
    table = FitTable(**parts)
    recipe = Recipe(**{**order.recipe, "hidden": tuple(order.recipe["hidden"])})
    run, threads = FITS[order.system], len(order.cores)
    classes = np.unique(table.y, return_index=True)[1]
    few = np.concatenate([classes, np.arange(64)])  # every class is there
    small = FitTable(table.x[few], table.y[few], table.x_test, table.y_test)
    run(small, replace(recipe, batch=16, epochs=1), order.norm, 0, threads, None)

    before = reset_peak()
    run(table, replace(recipe, epochs=2), order.norm, order.seed, threads, None)
    grown = None if before is None else peak() - before

    predicts: list[Predict] = []
    seconds: list[float] = []

    def after_epoch(predict: Predict) -> None:
        predicts.append(predict)
        seconds.append(time.perf_counter() - start)

    start = time.perf_counter()
    run(table, recipe, order.norm, order.seed, threads, after_epoch)
    whole = time.perf_counter() - start
    scores = [float((predict(table.x_test) == table.y_test).mean()) for predict in predicts]
    return Outcome(whole, seconds, scores, grown)


def reset_peak() -> int | None:
    """Begin a new high-water mark of this process's memory; returns the bytes that it has now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def peak() -> int:
    """The high-water mark since the last :func:`reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def answer(order: Order) -> dict[str, Any]:
    """The outcome as plain values, or why the system is left out."""
    try:
        return vars(fit(order))
    except ImportError as error:
        return {"left_out": f"it cannot be imported ({error}); pip install 'wholebatch[benchmarks]'"}


def _end_with_parent() -> None:
    os.read(0, 1)  # returns where standard input is closed, hence also when the parent was killed
    os._exit(1)


def main() -> None:
    """Do what the order on standard input says, and answer on standard output."""
    order = Order(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = cores.begin_worker(order.cores)
    answers.write(json.dumps(answer(order)) + "\n")


if __name__ == "__main__":
    main()
