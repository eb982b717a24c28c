"""From a table to what the engine takes: rows split, columns prepared by the training rows alone, and a digest.

:func:`prepare` is one process with all rows in memory; :func:`prepare_spread` gives each rank of a process group its
own rows of the same. While ranks do so, each holds

1. its columns, over all rows (its portion of a text file before), and what learning from numbers makes of them;
2. its rows of all columns, in the types of the file, beside its columns;
3. its rows as numbers; and the target and the weights of all rows, and which part each row is in, throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.runs.digest import digest_rows, digest_shards, shard_digests
from wholebatch.runs.parts import Part as Part
from wholebatch.runs.parts import Whole
from wholebatch.runs.planned import Plan, plan
from wholebatch.runs.settings import Settings
from wholebatch.sharing.messages import Group, rank_in, tell
from wholebatch.tables import Preprocessing, TableError, Target, drop_missing, read_table
from wholebatch.tables.agreeing import giving_up
from wholebatch.tables.errors import require_columns
from wholebatch.tables.joint import check_together, learn_together
from wholebatch.tables.shared import SharedTable
from wholebatch.tables.target import present_rows
from wholebatch.tables.together import read_together


@dataclass(frozen=True)
class Prepared:
    """A table made ready; ``digest`` is equal exactly where a run on it has the same bits.

    Over ranks, ``training``, ``validation`` and ``test`` hold this rank's rows, maybe none of a small part: those of
    its shards (:func:`wholebatch.feedforward.sharding.shard_bounds` of each part), so that one rank's rows behind the
    other's are all. Everything else is the same on every rank.

    Attributes:
        whole: of each part that there is, by name ("training", "validation", "test"), what is known of all its rows.
        shape: rows and columns of the whole table.
        digest: independent of the number of ranks; of one shard, that of the rows, of several, over those of shards.
    """

    preprocessing: Preprocessing
    target: Target
    training: Part
    validation: Part | None
    test: Part | None
    whole: dict[str, Whole]
    shape: tuple[int, int]
    digest: str

    @property
    def class_counts(self) -> np.ndarray:
        """Training rows of each class, on all ranks together ``(K,)``."""
        return np.bincount(self.whole["training"].y, minlength=self.target.out_features)


def prepare(frame: pl.DataFrame, settings: Settings, shards: int = 1) -> Prepared:
    """Split the rows, fit the preprocessing on the training rows, and turn every part into numbers.

    Test rows are set aside first, then validation rows; both stratified by class where every class allows it. Nothing
    of them reaches the preprocessing.

    Args:
        shards: what the digest is over; the rows are the same.

    Raises:
        TableError: whatever the table cannot give: a column that is missing, a target with holes, too few rows.
    """
    if settings.drop_missing_target:
        frame = drop_missing(frame, list(settings.target))
    planned, aside = plan(frame, settings), _aside(settings)
    try:
        preprocessing = Preprocessing.fit(frame[planned.whole["training"].rows], aside)
    except TableError:
        # The same fault, with the row's number in the table and not among training rows.
        Preprocessing.fit(frame, aside)
        raise
    x = preprocessing.transform(frame)
    parts = {name: Part(whole.rows, x[whole.rows], whole.y, whole.weight) for name, whole in planned.whole.items()}
    names = preprocessing.feature_names
    if shards == 1:
        digest = digest_rows(names, parts)
    else:
        bounds = {name: shard_bounds(len(part), shards) for name, part in parts.items()}
        digest = digest_shards(names, {name: shard_digests(part, bounds[name]) for name, part in parts.items()})
    return _prepared(planned, preprocessing, parts, frame.shape, digest)


def prepare_spread(source: str | Path, settings: Settings, shards: int, group: Group = None) -> Prepared:
    """:func:`prepare` of the table in ``source`` by all ranks of ``group``, each of which reads and keeps a share.

    Every rank calls it with the same arguments, and none inside of anything that waits for the others. What is learned
    from the table, the split and the digest equal those of one process.

    Args:
        source: as :func:`wholebatch.tables.read_table` takes it; the same file for every rank.
        shards: a multiple of the number of ranks; rank r of P keeps the rows of shards r S/P to (r+1) S/P.
        group: None: one process, which holds all shards.

    Raises:
        TableError: as :func:`prepare` and ``read_table``; the same sentence on all ranks, whichever found the mistake.
        MeetingError: another rank is missing.
    """
    rank, ranks = rank_in(group)
    if ranks == 1:
        return prepare(read_table(source), settings, shards)
    with giving_up(group):
        shared = read_together(str(source), group)
        known = shared.outline([*settings.target, *([settings.weights_column] if settings.weights_column else [])])
        if settings.drop_missing_target:
            present = present_rows(known, settings.target)
            known, shared = known.filter(present), shared.filter(present)
        planned = plan(known, settings)
        preprocessing = _fit_together(shared, planned.whole["training"].rows, _aside(settings))
        bounds = {name: shard_bounds(len(whole), shards) for name, whole in planned.whole.items()}
        ends = {name: bounds[name][:: shards // ranks] for name in bounds}
        rows = [
            np.concatenate([whole.rows[ends[name][r] : ends[name][r + 1]] for name, whole in planned.whole.items()])
            for r in range(ranks)
        ]
        frame = shared.deal_rows(rows, preprocessing.needed)
        del shared
        x = preprocessing.transform(frame)
        parts = _cut(x, planned, {name: slice(*ends[name][rank : rank + 2]) for name in ends})
        own = range(rank * (shards // ranks), (rank + 1) * (shards // ranks))
        found = {name: shard_digests(part, bounds[name][own.start : own.stop + 1]) for name, part in parts.items()}
        told = tell(found, group, "the digests of the rows")
        digest = digest_shards(
            preprocessing.feature_names, {name: [one for each in told for one in each[name]] for name in parts}
        )
    return _prepared(planned, preprocessing, parts, known.shape, digest)


def _fit_together(shared: SharedTable, kept: np.ndarray, aside: list[str]) -> Preprocessing:
    """The preprocessing of the training rows ``kept``, learned by all ranks; it takes all other rows, too."""
    require_columns(aside, shared.names, "which was to be left out of the features")
    names = [name for name in shared.names if name not in aside]
    try:
        own = shared.own[kept] if shared.own.width else shared.own
        state = learn_together(own, names, len(kept), shared.group)
    except TableError:
        learn_together(shared.own, names, shared.height, shared.group)
        raise
    preprocessing = Preprocessing(state)
    check_together(preprocessing, shared.own, shared.group)
    return preprocessing


def _cut(x: np.ndarray, planned: Plan, own: dict[str, slice]) -> dict[str, Part]:
    """This rank's rows of each part, from all of its rows, one part behind the other."""
    parts, begin = {}, 0
    for name, whole in planned.whole.items():
        rows = whole.rows[own[name]]
        weight = None if whole.weight is None else whole.weight[own[name]]
        parts[name] = Part(rows, x[begin : begin + len(rows)], whole.y[own[name]], weight)
        begin += len(rows)
    return parts


def _prepared(
    planned: Plan, preprocessing: Preprocessing, parts: dict[str, Part], shape: tuple[int, int], digest: str
) -> Prepared:
    held = parts.get("validation"), parts.get("test")
    return Prepared(preprocessing, planned.target, parts["training"], *held, planned.whole, shape, digest)


def _aside(settings: Settings) -> list[str]:
    """Columns that are no features."""
    return [*settings.target, *settings.ignore, *([settings.weights_column] if settings.weights_column else [])]


def class_weights(prepared: Prepared, settings: Settings) -> tuple[float, ...] | None:
    """``N / (K n_k)`` for class k with n_k training rows (scikit-learn's "balanced"); None where not asked for."""
    if settings.class_weight is None:
        return None
    if prepared.target.task != "classification":
        raise ValueError(
            f"--class-weight balanced weighs classes, but the task is {prepared.target.task}; leave it out"
        )
    counts = prepared.class_counts
    return tuple(len(prepared.whole["training"]) / (len(counts) * max(int(n), 1)) for n in counts)
