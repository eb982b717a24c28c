"""The machine's limits: numbers that are some, and refusals that say why."""

from __future__ import annotations

import math
import os

import pytest

from wholebatch.kernels import limits, native_available

pytestmark = pytest.mark.skipif(not native_available(), reason="the limits are measured by the compiled part")
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("instruction_set", ["", "portable"])
@pytest.mark.parametrize("threads", sorted({1, min(2, CORES)}))
def test_the_peak_is_a_number_above_zero(threads: int, instruction_set: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHOLEBATCH_INSTRUCTION_SET", instruction_set)
    peak = limits.fma_peak(threads, bursts=2, seconds=1e-3)
    assert math.isfinite(peak)
    assert peak > 0


@pytest.mark.parametrize("threads", sorted({1, min(2, CORES)}))
def test_the_bandwidth_is_a_number_above_zero(threads: int):
    bandwidth = limits.memory_bandwidth(threads, sweeps=2, array_bytes=1 << 20)
    assert math.isfinite(bandwidth)
    assert bandwidth > 0


@pytest.mark.parametrize("measure", [limits.fma_peak, limits.memory_bandwidth])
def test_threads_that_cannot_be_are_refused(measure):
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1"):
        measure(0)
    with pytest.raises(ValueError, match=rf"threads is {CORES + 1}, and this process may run on {CORES} cores"):
        measure(CORES + 1)


def test_bursts_and_arrays_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="bursts is 0; it must be at least 1"):
        limits.fma_peak(1, bursts=0)
    for seconds in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"seconds is .*; it must be a finite number above 0"):
            limits.fma_peak(1, seconds=seconds)
    with pytest.raises(ValueError, match="sweeps is -1; it must be at least 1"):
        limits.memory_bandwidth(1, sweeps=-1)
    with pytest.raises(ValueError, match="array_bytes is 3; it must be at least 4, a float32 for each thread"):
        limits.memory_bandwidth(1, array_bytes=3)
