"""The benchmark of growth: exponents of exact powers, sums by axis, a run. No speed is asserted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.exponent import fit_exponent
from benchmarks.rounds import Contender, Timings
from measuring import run
from wholebatch.kernels import native_available

needs_engine = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 1.7])
def test_the_exponent_of_an_exact_power(exponent: float):
    sizes = [2, 16, 64, 1024]
    fit = fit_exponent(sizes, [3e-6 * n**exponent for n in sizes])
    assert fit.exponent == pytest.approx(exponent, abs=1e-12)  # a few roundings of logarithms below 20
    assert fit.error == pytest.approx(0, abs=1e-7)  # the root of a difference of 1e-16
    with pytest.raises(ValueError, match="got 2 and 1"):
        fit_exponent([1, 2], [1.0])
    with pytest.raises(ValueError, match="must be above 0"):
        fit_exponent([1, 2], [0.0, 1.0])


def test_scaling_is_summed_up_by_axis():
    seconds = {
        Contender(str(n), "wholebatch", norm, 1): [factor * n * 1e-6] * 2
        for n in (64, 256, 1024)
        for norm, factor in (("batch", 2.2), ("none", 2.0))
    }
    found = scaling.summarise("batch", (64, 256, 1024), ["wholebatch"], Timings(seconds))
    assert [e["exponent"] for e in found["exponents"]] == pytest.approx([1.0, 1.0])
    assert [p["median_us"] for p in found["points"][:3]] == pytest.approx([140.8, 563.2, 2252.8])
    sheet = scaling.to_sheet(found)
    assert sheet.rows[0] == ("64", "140.8", "128.0", "1.100")
    assert "wholebatch, norm batch: exponent 1.00 ± 0.00" in sheet.caption


@needs_engine
def test_a_scaling_run_writes_its_points(tmp_path: Path):
    path = tmp_path / "scaling.json"
    options = ("--axes", "threads", "--threads", 1, "--systems", "wholebatch", "--repeats", 2, "--json", path)
    assert run("scaling", *options) == 0
    (found,) = json.loads(path.read_text())
    assert [(p["value"], p["norm"]) for p in found["points"]] == [(1, "batch"), (1, "none")]
    assert all(0 < p["p20_us"] <= p["median_us"] <= p["p80_us"] < math.inf for p in found["points"])
    assert found["exponents"] == []  # of a single point there is none
