"""Which cores a measurement with so many threads stands on: the same for every system."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO


def usable() -> list[int]:
    """The cores that this process may run on, one of each physical core first, their hyperthreads after them."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for core in cores:
        siblings = _siblings(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return first + second


def _siblings(core: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(core)


def environment(threads: int) -> dict[str, str]:
    """What tells every library's pool to have so many threads; the affinity alone does not reach all of them."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    found = {name: str(threads) for name in names}
    # XLA's pools follow the affinity; on one core it should not try to share work at all.
    if threads == 1:
        found["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false").strip()
    # torch.compile: no pool of compilers, which would stay behind a worker that is killed.
    return found | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "JAX_PLATFORMS": "cpu"}


def begin_worker(places: Iterable[int]) -> TextIO:
    """Stand on these cores, and on no other; returns the file for answers to the parent, which standard output was.

    To be called before anything is imported that makes threads. Whatever a library prints from then on goes to
    standard error, so that it is not read as an answer.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, places)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
