"""The benchmark of accuracy: what it trains is what it says, and its tables hold the numbers of its trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import precision_tables
from benchmarks.precision_cases import CASES, SYNTHETIC_ROWS, Case, make_table
from benchmarks.precision_runs import Run, Way, copy_of, gradient_error, make_net, run_seed
from measuring import run
from oracle import Oracle
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.data import prepare
from wholebatch.feedforward.reference import ReferenceEngine

WINE = CASES["wine"]
SETTINGS: dict[str, Any] = {"engine": "reference", "n_threads": 1}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tables_are_split_by_seed_and_standardised(case: Case):
    table, other = make_table(case, 0), make_table(case, 1)
    rows = len(table.y) + len(table.y_test)
    assert rows == len(case.load()[1])
    assert (rows == SYNTHETIC_ROWS) == (case.name == "synthetic")
    assert len(table.y_test) == math.ceil(rows / 4)
    assert not np.array_equal(table.y_test, other.y_test)
    assert set(table.y) == set(table.y_test) == set(range(table.classes))
    # Of N float32 numbers of size 1, each rounded by 2^-24.
    np.testing.assert_allclose(table.x.mean(0, dtype=np.float64), 0, atol=2.0**-23)
    deviations = table.x.std(0, dtype=np.float64)
    np.testing.assert_allclose(deviations[deviations > 0], 1, atol=2.0**-21)
    assert np.array_equal(make_table(case, 0).x_test, table.x_test)


def test_gradients_are_compared_with_those_in_float64():
    table = make_table(WINE, 3)
    net = make_net(WINE, table, 3)
    loss, rows = Loss("cross_entropy"), slice(WINE.batch_size)
    data = prepare(table.x[rows], table.y[rows], None, net.architecture, loss, torch.float32)
    exact = Oracle(net, loss).gradients(data)[1]
    found = ReferenceEngine(net, loss, Optimizer("sgd"), n_threads=1, matmul_precision="medium").gradients(data)[1]
    names = sorted(exact)
    given, expected = (torch.cat([of[name].double().flatten() for name in names]) for of in (found, exact))
    error = float((given - expected).norm() / expected.norm())
    assert 1e-3 < error < 0.2
    # The engine in float64 and the oracle differ by some roundings of float64.
    assert gradient_error(WINE, table, net, "medium", SETTINGS) == pytest.approx(error, rel=1e-9)
    assert gradient_error(WINE, table, net, "highest", SETTINGS) < 1e-4 < error


def test_every_way_begins_with_the_same_weights_and_sees_the_same_rows():
    ways: tuple[Way, ...] = ("float64", "highest", "high", "medium")
    runs = {found["way"]: found for found in run_seed(WINE, ways, 0, 2, "reference", 1)}
    usual = runs["highest"]
    again = run_seed(WINE, ("medium", "highest"), 0, 2, "reference", 1)
    assert again == [runs["medium"], usual]
    # From one epoch to the next, rounding grows: over two epochs by no more than a factor of a thousand.
    assert runs["float64"]["loss"] == pytest.approx(usual["loss"], rel=1e3 * 2.0**-24)
    assert runs["high"]["loss"] == pytest.approx(usual["loss"], rel=1e3 * 2.0**-16)
    assert len({found["loss"] for found in runs.values()}) == 4
    assert runs["float64"]["gradient_first"] is None
    for first, second in (("highest", "high"), ("high", "medium")):
        for key in ("gradient_first", "gradient_last"):
            assert runs[first][key] < runs[second][key]  # type: ignore[literal-required]
    net = make_net(WINE, make_table(WINE, 0), 0)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), copy_of(net, torch.float32).parameters(), strict=True)
    )


def made(way: Way, seed: int, accuracy: float, loss: float, gradient: float | None) -> Run:
    return {
        "case": "wine", "way": way, "seed": seed, "epochs": 7, "engine": "auto", "products": f"{way} numbers",
        "loss": 0.0, "test_loss": loss, "test_accuracy": accuracy,
        "gradient_first": gradient, "gradient_last": gradient,
    }  # fmt: skip


def test_a_table_has_means_differences_by_seed_and_the_worst_gradient():
    runs = [
        made("highest", 0, 0.90, 0.5, 1e-7), made("highest", 1, 0.80, 0.7, 3e-7),
        made("medium", 0, 0.91, 0.4, 0.02), made("medium", 1, 0.80, 0.4, 0.01),
        made("float64", 0, 0.90, 0.5, None), made("float64", 1, 0.80, 0.7, None),
    ]  # fmt: skip
    sheet = precision_tables.sheet_of("wine", [*runs, made("medium", 0, 0.0, 9.0, 1.0) | {"case": "digits"}])  # type: ignore[list-item]
    assert sheet.title == "wine: 7 epochs, 2 seeds"
    # Differences 1 and 0: mean 0.5, deviation 0.7071, over root 2 0.5. Of the losses -0.1 and -0.3.
    assert sheet.rows == [
        ("highest", "85.00 %", "", "0.6000", "", "3.0e-07", "3.0e-07"),
        ("medium", "85.50 %", "+0.50 ± 0.50", "0.4000", "-0.2000 ± 0.1000", "2.0e-02", "2.0e-02"),
        ("float64", "85.00 %", "+0.00 ± 0.00", "0.6000", "+0.0000 ± 0.0000", "", ""),
    ]
    assert sheet.caption == "medium: products in medium numbers"
    alone = precision_tables.sheet_of("wine", runs[::2])
    assert alone.rows[1][2] == "+1.00"


def test_a_measurement_writes_its_trainings_and_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    json_path, markdown = tmp_path / "runs.json", tmp_path / "precision.md"
    options = ("--cases", "wine", "--ways", "highest,medium", "--seeds", 2, "--epochs", 2, "--engine", "reference")
    threads = torch.get_num_threads()
    try:
        assert run("precision", *options, "--json", json_path, "--markdown", markdown) == 0
    finally:
        torch.set_num_threads(threads)
    runs = json.loads(json_path.read_text())
    assert [(found["way"], found["seed"]) for found in runs] == [(w, s) for s in (0, 1) for w in ("highest", "medium")]
    sheet = precision_tables.sheet_of("wine", runs)
    assert sheet.to_markdown() in markdown.read_text()
    assert "wine: 2 epochs, 2 seeds" in capsys.readouterr().out


def test_an_unknown_case_is_told(capsys: pytest.CaptureFixture[str]):
    assert run("precision", "--cases", "mnist") == 2
    assert "unknown case 'mnist'; known are digits, breast_cancer, wine, synthetic" in capsys.readouterr().err
