"""What rounded products lost, as one table a case."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from benchmarks.precision_runs import Run
from benchmarks.sheet import Sheet

COLUMNS = ("products", "test accuracy", "difference", "test loss", "difference", "gradients, first", "last")

Measure = Literal["test_accuracy", "test_loss"]


def sheet_of(case: str, runs: Sequence[Run]) -> Sheet:
    """One line a way: means over seeds, and the differences to "highest", seed by seed."""
    runs = [run for run in runs if run["case"] == case]
    usual = {run["seed"]: run for run in runs if run["way"] == "highest"}
    sheet = Sheet(f"{case}: {runs[0]['epochs']} epochs, {len({run['seed'] for run in runs})} seeds", COLUMNS, words=1)
    for way in dict.fromkeys(run["way"] for run in runs):
        own = [run for run in runs if run["way"] == way]
        against = [] if way == "highest" else [(run, usual[run["seed"]]) for run in own if run["seed"] in usual]
        sheet.rows.append(
            (
                way,
                f"{100 * statistics.fmean(run['test_accuracy'] for run in own):.2f} %",
                differences(against, "test_accuracy", 100, 2),
                f"{statistics.fmean(run['test_loss'] for run in own):.4f}",
                differences(against, "test_loss", 1, 4),
                _worst([run["gradient_first"] for run in own]),
                _worst([run["gradient_last"] for run in own]),
            )
        )
    made = {run["way"]: run["products"] for run in runs if run["way"] not in ("float64", "highest")}
    sheet.caption = "; ".join(f"{way}: products in {products}" for way, products in made.items())
    return sheet


def differences(pairs: Sequence[tuple[Run, Run]], of: Measure, scale: float, digits: int) -> str:
    """Mean of the differences and its standard error, ``s / sqrt(n)``; one difference has none."""
    found = [scale * (run[of] - other[of]) for run, other in pairs]
    if not found:
        return ""
    error = f" ± {statistics.stdev(found) / len(found) ** 0.5:.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.{digits}f}{error}"


def _worst(errors: Sequence[float | None]) -> str:
    known = [error for error in errors if error is not None]
    return f"{max(known):.1e}" if known else ""
