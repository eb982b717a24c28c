"""What every contender is given: the same rows, the same first weights, the same mini-batches in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from wholebatch import runs
from wholebatch.cost.comparison.norms import NORMS
from wholebatch.cost.comparison.record import NormName
from wholebatch.cost.comparison.settings import Wanted
from wholebatch.cost.subject import Subject
from wholebatch.feedforward import FeedForward
from wholebatch.feedforward.data import Data, batch_offsets, shuffled
from wholebatch.feedforward.data import prepare as prepare_data
from wholebatch.feedforward.engines import check_fit
from wholebatch.feedforward.evaluation import check_scorable
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer
from wholebatch.runs.prepared import Prepared, prepare
from wholebatch.runs.recording import SCORES
from wholebatch.tables import read_table

FORMS = 6
"""Copies of a net's parameters that a training holds at most, counted high: value, gradient, two states, both sides."""


@dataclass(frozen=True)
class Problem:
    """A table ready to be learned, and the net without its norm.

    Args:
        training, validation: rows, in ``dtype``.
        loss: to minimise; it also decides the score.
        plain: the net without a norm.
        optimizer: whose learning rate each contender replaces.
        offsets: where each mini-batch of an epoch begins, the same for every norm.
        dtype: of nets and rows.
    """

    training: Data
    validation: Data
    loss: Loss
    plain: Architecture
    optimizer: Optimizer
    offsets: np.ndarray
    dtype: torch.dtype = torch.float32

    @property
    def steps_per_epoch(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def mini_batch(self) -> int:
        """Rows of the largest mini-batch."""
        return int(np.diff(self.offsets).max())

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch: a function of seed and epoch alone."""
        return shuffled(len(self.training), seed, epoch)

    def architecture(self, norm: NormName) -> Architecture:
        """The net with this norm."""
        kind, position, _ = NORMS[norm]
        return replace(self.plain, norm=kind, norm_position=position)

    def net(self, norm: NormName, seed: int) -> FeedForward:
        """The net with this norm; its linear layers begin with the weights that they have under every norm."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            source = FeedForward.of(self.plain, dtype=self.dtype)
            net = FeedForward.of(self.architecture(norm), dtype=self.dtype)
            for part, given in zip(net.parts(), source.parts(), strict=True):
                part.linear.weight.copy_(given.linear.weight)
                if part.linear.bias is not None:
                    part.linear.bias.copy_(given.linear.bias)
        return net


def make(wanted: Wanted) -> tuple[Problem, Prepared, list[str]]:
    """The problem, the table as it was prepared, and notes for the reader.

    Raises:
        ValueError: whatever is wrong with the table (TableError) or a setting, or nets that do not fit in memory.
    """
    settings = wanted.run
    optimizer = settings.make_optimizer()
    settings.architecture(1, 1)
    frame, notes = read_table(settings.table), []
    if wanted.most_rows is not None and frame.height > wanted.most_rows:
        notes.append(f"{wanted.most_rows:,} of the table's {frame.height:,} rows were drawn (--quick).")
        frame = frame.sample(wanted.most_rows, seed=settings.seed)
    prepared = prepare(frame, settings)
    if prepared.validation is None:
        raise ValueError("validation_fraction is 0; the norms are compared by the score of validation rows, keep some")
    notes += [*prepared.target.notes, *prepared.preprocessing.notes]
    loss = settings.make_loss(prepared.target.task, None)
    sizes = len(prepared.preprocessing.feature_names), settings.hidden, prepared.target.out_features
    plain = Architecture(*sizes, "none", "before", settings.activation)
    training, validation = (
        prepare_data(part.x, part.y, None, plain, loss, torch.float32)
        for part in (prepared.training, prepared.validation)
    )
    check_scorable(validation, loss)
    problem = Problem(
        training,
        validation,
        loss,
        plain,
        optimizer,
        _offsets(len(training), settings.batch_size, plain, wanted.norms),
    )
    _check_memory(problem, wanted)
    return problem, prepared, notes


def describe(problem: Problem, prepared: Prepared, run: runs.Settings, seeds: int, notes: list[str]) -> Subject:
    """What a record keeps of the problem and of how it is trained."""
    return Subject(
        table=run.table,
        target_columns=list(prepared.target.columns),
        task=prepared.target.task,
        score_name=SCORES[prepared.target.task],
        training_rows=len(problem.training),
        validation_rows=len(problem.validation),
        sizes=list(problem.plain.sizes),
        activation=problem.plain.activation,
        optimizer=problem.optimizer.kind,
        batch_size=run.batch_size,
        epochs=run.epochs,
        steps_per_epoch=problem.steps_per_epoch,
        seeds=list(range(seeds)),
        notes=notes,
    )


def _offsets(rows: int, batch_size: int, plain: Architecture, norms: Sequence[NormName]) -> np.ndarray:
    """One cut for all norms: batch norm, where it is among them, cannot have a mini-batch of one row."""
    norm = next((name for name in norms if NORMS[name][0] == "batch"), norms[0])
    return batch_offsets(rows, batch_size, replace(plain, norm=NORMS[norm][0]))


def _check_memory(problem: Problem, wanted: Wanted) -> None:
    largest = max((problem.architecture(norm) for norm in wanted.norms), key=lambda a: net_bytes(a, problem.dtype))
    check_fit(
        largest,
        problem.optimizer,
        problem.mini_batch,
        problem.dtype,
        n_threads=wanted.threads,
        held=len(problem.validation),
        net=FORMS * len(wanted.norms) * len(wanted.engines) * net_bytes(largest, problem.dtype),
    )
