"""Fits of several systems, in turn, each in a process of its own; and what their repeats come to."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cores
from benchmarks.fit_tables import FitTable, Recipe
from benchmarks.fit_worker import Order, Outcome

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, order=True)
class Fitter:
    """One line of a table."""

    system: str
    norm: str
    threads: int

    def __str__(self) -> str:
        return f"{self.system}, norm {self.norm}, {self.threads} thread{'s' * (self.threads > 1)}"


class FitError(Exception):
    """A fit that came to nothing, and why."""


Outcomes = dict[Fitter, dict[int, Outcome]]


def run_one(folder: Path, recipe: Recipe, fitter: Fitter, seed: int) -> Outcome:
    """A fit in a new process.

    Raises:
        FitError: the system is not installed, or its process died.
    """
    order = Order(str(folder), asdict(recipe), fitter.system, fitter.norm, seed, cores.usable()[: fitter.threads])
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fit_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=os.environ | cores.environment(fitter.threads),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it is gone; what it said last is told below
                process.stdin.write(json.dumps(asdict(order)) + "\n")
                process.stdin.flush()  # and stays open: the worker ends where it is closed
            said = process.stdout.read()
            code = process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
    if code != 0 or not said:
        by = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise FitError(f"its process ended with {by}: {last}")
    answer = json.loads(said)
    if "left_out" in answer:
        raise FitError(answer["left_out"])
    return Outcome(**answer)


def run_all(
    table: FitTable, folder: Path, recipe: Recipe, fitters: list[Fitter], repeats: int, say: Callable[[str], None]
) -> Outcomes:
    """``repeats`` rounds of one fit of each, in a new order every round; the seed is the round's number.

    A system whose fit fails is told, and left out from then on.
    """
    for name, values in vars(table).items():
        np.save(folder / f"{name}.npy", values)
    found: Outcomes = {fitter: {} for fitter in fitters}
    shuffle = random.Random(0).shuffle
    for seed in range(repeats):
        order = list(found)
        shuffle(order)
        for fitter in order:
            if fitter not in found:
                continue
            try:
                found[fitter][seed] = run_one(folder, recipe, fitter, seed)
            except FitError as error:
                say(f"{fitter} is left out: {error}")
                del found[fitter]
    return found


def reached(outcome: Outcome, target: float) -> tuple[int, float] | None:
    """(epoch from 1, seconds) of the first epoch whose score is no lower than ``target``; None where none is."""
    for epoch, score in enumerate(outcome.scores):
        if score >= target:
            return epoch + 1, outcome.epoch_seconds[epoch]
    return None


def rows_of(name: str, table: FitTable, recipe: Recipe, found: Outcomes) -> list[dict[str, Any]]:
    """One row a fitter: medians over the repeats, with lowest and highest.

    The target of a repeat is the score that scikit-learn's net ends with for the same seed (of several numbers of
    threads, the lowest end); ``target_seconds`` is null where a repeat never reached it, or where scikit-learn is
    left out.
    """
    targets = _targets(found)
    rows = []
    for fitter, outcomes in sorted(found.items()):
        seconds = [outcome.seconds for outcome in outcomes.values()]
        ends = [outcome.scores[-1] for outcome in outcomes.values()]
        peaks = [outcome.peak_bytes for outcome in outcomes.values() if outcome.peak_bytes is not None]
        there = [reached(outcome, targets[seed]) for seed, outcome in outcomes.items() if seed in targets]
        met = [hit for hit in there if hit is not None]
        all_met = len(met) == len(outcomes)
        rows.append(
            {
                "table": name,
                "dtype": str(table.x.dtype),
                "system": fitter.system,
                "norm": fitter.norm,
                "threads": fitter.threads,
                "repeats": len(outcomes),
                "epochs": recipe.epochs,
                "seconds": statistics.median(seconds),
                "seconds_lowest": min(seconds),
                "seconds_highest": max(seconds),
                "score": statistics.fmean(ends),
                "score_std": statistics.pstdev(ends),
                "peak_bytes": statistics.median(peaks) if peaks else None,
                "table_bytes": table.x.nbytes,
                "target": statistics.fmean(targets.values()) if targets else None,
                "target_reached": len(met),
                "target_epoch": statistics.median(epoch for epoch, _ in met) if all_met else None,
                "target_seconds": statistics.median(took for _, took in met) if all_met else None,
            }
        )
    return rows


def _targets(found: Outcomes) -> dict[int, float]:
    targets: dict[int, float] = {}
    for fitter, outcomes in found.items():
        if fitter.system == "sklearn":
            for seed, outcome in outcomes.items():
                targets[seed] = min(outcome.scores[-1], targets.get(seed, 1.0))
    return targets
