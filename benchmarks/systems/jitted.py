"""JAX: the whole step, running statistics too, under one jit with its state donated."""

from __future__ import annotations

import time
from importlib.metadata import version
from itertools import cycle, islice, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problem import Problem

EPS, MOMENTUM = 1e-5, 0.1


def load() -> str:
    """The versions of jax and of its compiler."""
    return f"{jax.__version__} (jaxlib {version('jaxlib')})"


def initial(problem: Problem) -> Any:
    """(parameters, running statistics, optimizer state, step)."""
    random = np.random.default_rng(0)
    layers = []
    hidden = problem.sizes[1:-1]
    for i, (fan_in, fan_out) in enumerate(pairwise(problem.sizes)):
        bound = fan_in**-0.5
        layer = {"w": random.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32)}
        if i == len(hidden) or problem.norm != "batch":
            layer["b"] = np.zeros(fan_out, np.float32)
        if i < len(hidden) and problem.norm != "none":
            layer |= {"gamma": np.ones(fan_out, np.float32), "beta": np.zeros(fan_out, np.float32)}
        layers.append(layer)
    running = [(np.zeros(n, np.float32), np.ones(n, np.float32)) for n in hidden] if problem.norm == "batch" else []
    moments = [] if problem.optimizer == "sgd" else [jax.tree.map(np.zeros_like, layers) for _ in range(2)]
    return jax.tree.map(jnp.array, (layers, running, moments, np.float32(0)))


def _normalise(problem: Problem, layer: Any, z: Any, running: Any) -> tuple[Any, Any]:
    if problem.norm == "none":
        return z, None
    axis = 0 if problem.norm == "batch" else 1
    mean = jnp.mean(z, axis, keepdims=True)
    var = jnp.mean(jnp.square(z - mean), axis, keepdims=True)
    y = (z - mean) * (jax.lax.rsqrt(var + EPS) * layer["gamma"]) + layer["beta"]
    if problem.norm == "layer":
        return y, None
    unbiased = var[0] * (z.shape[0] / (z.shape[0] - 1))
    new = tuple(old + MOMENTUM * (now - old) for old, now in zip(running, (mean[0], unbiased), strict=True))
    return y, new


def _loss(problem: Problem, layers: Any, running: Any, x: Any, y: Any) -> tuple[Any, Any]:
    kept = []
    for i, layer in enumerate(layers):
        x = x @ layer["w"]
        if "b" in layer:
            x = x + layer["b"]
        if i < len(layers) - 1:
            x, new = _normalise(problem, layer, x, running[i] if running else None)
            kept.append(new)
            x = jax.nn.relu(x)
    truth = jax.nn.one_hot(y, x.shape[1])
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(x) * truth, 1)), kept if running else []


def _update(problem: Problem, layers: Any, gradients: Any, moments: Any, step: Any) -> tuple[Any, Any]:
    rate = problem.learning_rate
    if problem.optimizer == "sgd":
        return jax.tree.map(lambda w, g: w - rate * g, layers, gradients), []
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, moments[1], gradients)
    size, root = rate / (1 - 0.9**step), jnp.sqrt(1 - 0.999**step)
    return jax.tree.map(lambda w, m, v: w - size * m / (jnp.sqrt(v) / root + 1e-8), layers, first, second), [
        first,
        second,
    ]


def take_step(problem: Problem, state: Any, x: Any, y: Any) -> Any:
    """The state after a training step on this mini-batch; to be traced."""
    layers, running, moments, count = state
    gradient = jax.grad(lambda w: _loss(problem, w, running, x, y), has_aux=True)
    gradients, running = gradient(layers)
    layers, moments = _update(problem, layers, gradients, moments, count + 1)
    return layers, running, moments, count + 1


class Jitted:
    """One jitted step, called for one mini-batch after another."""

    note = ""

    def __init__(self, problem: Problem) -> None:
        x, y = problem.table()
        shape = (problem.batches, problem.batch)
        self.batches = cycle(
            [
                (jnp.array(a), jnp.array(b, jnp.int32))
                for a, b in zip(x.reshape(*shape, -1), y.reshape(shape), strict=True)
            ]
        )
        self.state = initial(problem)

        self.step = jax.jit(lambda state, x, y: take_step(problem, state, x, y), donate_argnums=0)

    def run(self, steps: int) -> float:
        batches, state, step = list(islice(self.batches, steps)), self.state, self.step
        start = time.perf_counter()
        for x, y in batches:
            state = step(state, x, y)
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - start
        self.state = state
        return seconds


make = Jitted
