"""JAX: many steps under one jit, a loop over a table on the device, as ours is called once for many steps.

Mini-batches lie ready, one after the other in the table, as for the other peers.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.problem import Problem
from benchmarks.systems.jitted import initial, load, take_step

__all__ = ["Problem", "load", "make"]


class Scanned:
    """A jitted loop of as many steps as are asked for, its state donated."""

    note = ""

    def __init__(self, problem: Problem) -> None:
        x, y = problem.table()
        shape = problem.batches, problem.batch
        self.x, self.y = jnp.array(x.reshape(*shape, -1)), jnp.array(y.reshape(shape), jnp.int32)
        self.state, self.done = initial(problem), 0

        def loop(state: Any, x: Any, y: Any, first: Any, count: Any) -> Any:
            def body(i: Any, state: Any) -> Any:
                batch = (first + i) % problem.batches
                return take_step(problem, state, x[batch], y[batch])

            return jax.lax.fori_loop(0, count, body, state)

        self.loop = jax.jit(loop, donate_argnums=0)

    def run(self, steps: int) -> float:
        start = time.perf_counter()
        self.state = self.loop(self.state, self.x, self.y, self.done, steps)
        jax.block_until_ready(self.state)  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - start
        self.done = (self.done + steps) % len(self.x)
        return seconds


make = Scanned
