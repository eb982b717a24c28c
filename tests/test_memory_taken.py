"""What nets and fits take in memory, as processes grow, against what was counted beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.programs import run
from wholebatch import Optimizer
from wholebatch.feedforward.footprint import native_need, reference_need
from wholebatch.feedforward.settings import Architecture
from wholebatch.kernels import native_available, product_unit

needs_native = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")
# In a process of its own: what is measured is how far it grows.
MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.data import batch_offsets, prepare
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, Optimizer

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

order = json.loads(sys.argv[1])
def train(sizes, rows):
    net = FeedForward(sizes[0], tuple(sizes[1:-1]), sizes[-1], norm=order["norm"], dtype=getattr(torch, order["dtype"]))
    x = np.random.default_rng(0).standard_normal((rows, sizes[0])).astype(order["dtype"])
    loss = Loss("cross_entropy")
    data = prepare(x, np.arange(rows) % sizes[-1], None, net.architecture, loss, getattr(torch, order["dtype"]))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    how = {"engine": order["engine"], "matmul_precision": order["precision"]}
    engine = make_engine(net, loss, Optimizer(), n_threads=2, **how)
    offsets = batch_offsets(rows, rows, net.architecture)
    for _ in range(2):
        engine.train_epoch(data, np.arange(rows), offsets, np.full(1, 1e-3))
    return status("VmHWM") - before
train([3, 4, 2], 64)
print(train(order["sizes"], order["rows"]))
"""
can_measure = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
# Beside what is counted: each of about ten large buffers is rounded up to whole huge pages of 2 MiB, half of one on
# average; threads have stacks.
BESIDE = 16 << 20


def grown(
    engine: str, sizes: list[int], rows: int, norm: str, dtype: str, precision: str = "highest", *, forked: bool = True
) -> int:
    """Bytes; some MB more where it was forked, as the libraries' pages come back when they are read again."""
    names = {"engine": engine, "sizes": sizes, "rows": rows, "norm": norm, "dtype": dtype, "precision": precision}
    order = json.dumps(names)
    command = [sys.executable, "-c", MEASURE, order]
    done = run(MEASURE, order) if forked else subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@needs_native
@can_measure
@pytest.mark.parametrize(
    ("sizes", "rows", "norm", "dtype"),
    [([64, 2000, 2000, 10], 256, "batch", "float32"), ([16, 100, 100, 5], 60_000, "layer", "float64")],
)
def test_the_native_engine_takes_what_is_counted(sizes: list[int], rows: int, norm: str, dtype: str):
    """One shape in which the net is large, one in which the mini-batch is; to 10 % and what is not counted."""
    architecture = Architecture(sizes[0], tuple(sizes[1:-1]), sizes[-1], norm=norm)  # type: ignore[arg-type]
    counted = native_need(architecture, Optimizer(), rows, getattr(torch, dtype), 2).total
    assert counted > 7 * BESIDE
    assert abs(grown("native", sizes, rows, norm, dtype) - counted) < 0.1 * counted + BESIDE


@needs_native
@can_measure
@pytest.mark.parametrize(("rows", "precision"), [(256, "high"), (24_000, "medium")])
def test_operands_that_are_rounded_take_what_is_counted_more(rows: int, precision: Any):
    """With a large net they are of weights, with a large mini-batch of gradients; to 10 % and what ten buffers of them
    are rounded up by."""
    if product_unit(precision) is None:
        pytest.skip("the processor has no unit for products of bfloat16 numbers that pays")
    sizes = [64, 2000, 2000, 10] if rows == 256 else [16, 500, 500, 5]
    architecture = Architecture(sizes[0], tuple(sizes[1:-1]), sizes[-1], norm="layer")
    needs = [native_need(architecture, Optimizer(), rows, torch.float32, 2, of).total for of in ("highest", precision)]
    grew = [grown("native", sizes, rows, "layer", "float32", of) for of in ("highest", precision)]
    counted, beside = needs[1] - needs[0], 10 << 20
    assert counted > 2 * beside
    assert abs(grew[1] - grew[0] - counted) < 0.1 * counted + beside


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@can_measure
def test_the_reference_engine_takes_no_less_than_is_counted(precision: Any):
    """What would fit must not be refused."""
    sizes, rows = [16, 100, 100, 5], 20_000
    counted = reference_need(Architecture(16, (100, 100), 5), Optimizer(), rows, torch.float32, precision).total
    assert counted > 30e6
    assert grown("reference", sizes, rows, "batch", "float32", precision, forked=False) > counted


WHOLE_FITS = """
import sys, warnings
from pathlib import Path
import numpy as np
import torch
from wholebatch import FeedForward, Training
from wholebatch.sklearn import MLPClassifier, MLPRegressor
warnings.simplefilter("ignore")

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def fit(kind, rows):
    x = np.random.default_rng(0).standard_normal((rows, 54)).astype(np.float32)
    y = np.arange(rows) % 7
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if kind == "net":
        held = x[: rows // 10], y[: rows // 10]
        net = FeedForward(54, (8,), 7)
        net.fit(torch.from_numpy(x), y, validation=held, training=Training(epochs=1, batch_size=512, patience=1))
    elif kind == "classifier":
        MLPClassifier((8,), batch_size=512, max_iter=1, early_stopping=True).fit(x, y)
    else:
        MLPRegressor(hidden_layer_sizes=(8,), batch_size=512, max_iter=1, early_stopping=True).fit(x, y / 7)
    return (status("VmHWM") - before) / x.nbytes

fit(sys.argv[1], 2000)
print(fit(sys.argv[1], 200_000))
"""


@can_measure
@pytest.mark.parametrize(("kind", "most"), [("net", 0.15), ("classifier", 0.7), ("regressor", 0.4)])
def test_a_fit_takes_less_than_the_table_once_more(kind: str, most: float):
    """In tables of 43 MB: the net's own fit copies none of it.

    Both estimators copy the tenth that they validate on, and scikit-learn turns seven classes into 56 bytes a row (a
    quarter of the table) and, for a moment, into a sparse matrix.
    """
    done = run(WHOLE_FITS, kind)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most


ABSURD = """
import resource, warnings
import numpy as np
import torch, wholebatch, wholebatch.sklearn
from wholebatch.sklearn import MLPClassifier, MLPRegressor
x, y = np.zeros((40, 4)), np.arange(40) % 2
wide = (10**7, 10**7)
warnings.simplefilter("ignore")
MLPClassifier((4,), max_iter=2).fit(x, y)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for make in (
    lambda: wholebatch.FeedForward(4, wide, 2),
    lambda: wholebatch.FeedForward(4, wide, 2, dtype=torch.float64),
    lambda: MLPClassifier(wide).fit(x, y),
    lambda: MLPClassifier(wide, engine="reference").fit(x, y),
    lambda: MLPRegressor(hidden_layer_sizes=wide, solver="lbfgs").fit(x, y),
):
    try:
        make()
    except ValueError as error:
        print("REFUSED", error)
print("GREW", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_absurd_shape_takes_nothing():
    done = run(ABSURD)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert len(refused) == 5, done.stdout
    for line, least in zip(refused, (4e14, 8e14, 16e14, 16e14, 16e14), strict=True):  # 1e14 weights, 4 or 8 bytes each
        assert line.startswith("REFUSED")
        words = line.split("needs ")[1].split(" bytes")[0]
        assert int(words.replace(",", "")) > least
        assert "fewer or narrower hidden layers" in line
    kibibytes = int(last.split()[1])
    assert kibibytes < 20 * 1024
