"""The systems that are measured, one module each.

A module has ``load() -> str`` (imports what it needs and tells the version; raises :class:`LeftOut` or ImportError),
``Problem``, the class of what it measures, and ``make(problem) -> Trainer``. It is imported in a worker process that
already stands on its cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks import lockstep_cases


@dataclass(frozen=True)
class System:
    """The module in this package, and what the environment of its processes has beside the usual."""

    module: str
    environment: Mapping[str, str] = field(default_factory=dict)


# By the name that reports give them.
SYSTEMS = {
    "wholebatch": System("ours"),
    "torch": System("eager"),
    "compile": System("compiled"),
    "jax": System("jitted"),
    "jax-scan": System("scanned"),
    "sklearn": System("perceptron"),
}
PEERS = tuple(name for name in SYSTEMS if name != "wholebatch")
# What is measured unless a person says otherwise: peers as they are used, called for each step.
USUAL_PEERS = tuple(name for name in PEERS if name != "jax-scan")

# Those that can round what they multiply, by the name that reports give them: "torch-medium" is torch after
# torch.set_float32_matmul_precision("medium"). JAX's default_matmul_precision changes no bit on a CPU.
LOWER_PRECISIONS = ("high", "medium")
ROUNDED = {f"{name}-{p}": (name, p) for name in ("wholebatch", "torch", "compile") for p in LOWER_PRECISIONS}


# glibc's allocator, told to keep what it has: large outputs that the system maps afresh cost page faults at each call.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
# Of the measurement of single layers. "tuned" is torch eager under the tuned allocator.
LAYER_SYSTEMS = {
    "wholebatch": System("layers.ours"),
    "wholebatch-tuned": System("layers.ours", TUNED),
    "torch": System("layers.eager"),
    "tuned": System("layers.eager", TUNED),
    "compile": System("layers.compiled", TUNED),
    "compile-default": System("layers.compiled"),
    "sweeps": System("layers.sweeps"),
    "sweeps-tuned": System("layers.sweeps", TUNED),
}
LAYER_PEERS = ("torch", "tuned", "compile", "compile-default")

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}
# Of the measurement of ranks that share a layer; the kind is chosen by the problem.
SHARING_SYSTEMS = dict.fromkeys(("local", "shared", "all_gather"), System("ranks", LOOPBACK))

# Of the measurement of ranks that train a net together; how "ranks" do is chosen by the problem.
SPREAD_SYSTEMS = {"ranks": System("spread", LOOPBACK), "ddp": System("distributed", LOOPBACK)}

# Of the measurement of micro-batches; the way is chosen by the problem.
LOCKSTEP_SYSTEMS = dict.fromkeys(lockstep_cases.SYSTEMS, System("lockstep"))


class LeftOut(Exception):
    """A system that cannot be measured here; the message has the reason and the remedy."""


class Trainer(Protocol):
    """A net that can be trained for a number of steps. ``note`` says which variant it is, where there are several."""

    note: str

    def run(self, steps: int) -> float:
        """Do so many training steps; returns the seconds that they took, all work finished."""
        ...
