"""A net with its engine that works for one estimator, kept from call to call.

Making an engine starts threads, which would cost a stream of small ``partial_fit`` calls more than the work itself.
What is kept here is never pickled or copied: it is made again where it is needed (after unpickling, in a forked
process, after a person put other arrays in place of the estimator's).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wholebatch.feedforward.engine import Engine
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Architecture, Loss, MatmulPrecision, Optimizer, Split
from wholebatch.sklearn.binding import arrays_of, bind


@dataclass(frozen=True)
class Team:
    """Who does the work; on the CPU the numbers do not depend on it."""

    n_threads: int | None
    split: Split
    engine: str
    device: str

    @classmethod
    def of(cls, estimator: Any) -> Team:
        n_threads = None if estimator.n_threads is None else int(estimator.n_threads)
        return cls(n_threads, estimator.split, estimator.engine, estimator.device)


@dataclass(frozen=True)
class Work:
    """What the engine is for."""

    architecture: Architecture
    loss: Loss
    optimizer: Optimizer
    seed: int
    peers: Peers | None = None  # who else trains
    matmul_precision: MatmulPrecision = "highest"  # of the products of training


@dataclass
class Live:
    """An engine on the memory of the estimator's arrays, good for these very arrays in the process that made it."""

    team: Team
    work: Work
    engine: Engine
    arrays: list[np.ndarray]
    pid: int = field(default_factory=os.getpid)
    lock: threading.Lock = field(default_factory=threading.Lock)  # an engine answers one caller at a time

    def serves(self, estimator: Any) -> bool:
        """Whether the estimator still has these arrays and wants this team, in the process that made it.

        In a forked process the team's threads are missing, and the lock stays locked if another thread held it.
        """
        now = arrays_of(estimator)
        same = len(now) == len(self.arrays) and all(a is b for a, b in zip(now, self.arrays, strict=True))
        return same and self.pid == os.getpid() and self.team == Team.of(estimator)


def live_for(estimator: Any, work: Work | None = None) -> Live:
    """The estimator's engine: the one that it has, if it serves, else a new one. None: any that can predict."""
    live: Live | None = vars(estimator).get("_live")
    if live is not None and live.serves(estimator) and work in (None, live.work):
        return live
    team = Team.of(estimator)
    work = work or Work(estimator._architecture, Loss("mse"), Optimizer("sgd"), seed=0)
    net = bind(estimator, work.architecture)
    engine = make_engine(
        net,
        work.loss,
        work.optimizer,
        seed=work.seed,
        n_threads=team.n_threads,
        split=team.split,
        engine=team.engine,
        peers=work.peers,
        matmul_precision=work.matmul_precision,
        device=team.device,
    )
    live = estimator._live = Live(team, work, engine, arrays_of(estimator))
    return live


def whole_table(work: Work) -> Work:
    """The same work where every evaluation sees the whole table: running statistics are then simply the last ones."""
    return replace(work, architecture=replace(work.architecture, momentum=1.0))
