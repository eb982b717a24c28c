"""From a table to what the engine takes: rows split, columns prepared by the training rows alone, and a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from wholebatch.feedforward.data import split_rows
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.runs.settings import Settings
from wholebatch.sharing.messages import Group, rank_in
from wholebatch.tables import Preprocessing, TableError, Target, drop_missing, read_table, weights
from wholebatch.tables.agreeing import agree


@dataclass(frozen=True)
class Part:
    """Rows of the table, as numbers: ``x`` (N, F) float32, ``y`` as the loss takes it, ``weight`` (N,) or None."""

    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    def as_tuple(self) -> tuple[np.ndarray, ...]:
        """``(x, y)`` or ``(x, y, weight)``: what ``fit`` takes as validation rows."""
        return (self.x, self.y) if self.weight is None else (self.x, self.y, self.weight)


@dataclass(frozen=True)
class Whole:
    """What every rank knows of a part's rows, its own and all others', in the order of the table.

    Attributes:
        rows: their indices in the table ``(N,)``.
        y, weight: as in :class:`Part`.
    """

    rows: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)


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
    plan = _plan(frame, settings)
    kept, aside = plan.whole["training"].rows, _aside(settings)
    try:
        preprocessing = Preprocessing.fit(frame[kept], aside)
    except TableError:
        Preprocessing.fit(
            frame, aside
        )  # the same fault, with the row's number in the table and not among training rows
        raise
    x = preprocessing.transform(frame)
    parts = {name: Part(rows.rows, x[rows.rows], rows.y, rows.weight) for name, rows in plan.whole.items()}
    digest = _digest(preprocessing.feature_names, parts, shards)
    return _prepared(plan, preprocessing, parts, frame.shape, digest)


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
    prepared = agree(lambda: prepare(read_table(source), settings, shards), group, "the table")
    each, parts = shards // ranks, {}
    for name, part in (("training", prepared.training), ("validation", prepared.validation), ("test", prepared.test)):
        if part is not None:
            bounds = shard_bounds(len(part), shards)[rank * each : (rank + 1) * each + 1]
            here = slice(bounds[0], bounds[-1])
            weight = None if part.weight is None else part.weight[here]
            parts[name] = Part(part.rows[here], part.x[here], part.y[here], weight)
    return replace(prepared, **parts)


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


@dataclass(frozen=True)
class _Plan:
    """What is known before a column is looked at: the target, and which rows are for what."""

    target: Target
    whole: dict[str, Whole]


def _plan(frame: pl.DataFrame, settings: Settings) -> _Plan:
    """Looks at the columns of target and weights alone; of the others it needs the names."""
    columns = list(settings.target)
    target = Target.infer(frame, columns, settings.task)
    settings.make_loss(target.task, None)
    y = target.encode(frame)
    weight = None if settings.weights_column is None else weights(frame, settings.weights_column)
    rows = _split(frame.height, y if target.task == "classification" else None, settings)
    if target.task == "regression":  # mean and standard deviation of the training rows alone
        target = Target.infer(frame[rows["training"]], columns, "regression")
        y = target.encode(frame)
    return _Plan(
        target, {name: Whole(r, y[r], None if weight is None else weight[r]) for name, r in rows.items() if len(r)}
    )


def _prepared(
    plan: _Plan, preprocessing: Preprocessing, parts: dict[str, Part], shape: tuple[int, int], digest: str
) -> Prepared:
    held = parts.get("validation"), parts.get("test")
    return Prepared(preprocessing, plan.target, parts["training"], *held, plan.whole, shape, digest)


def _aside(settings: Settings) -> list[str]:
    """Columns that are no features."""
    return [*settings.target, *settings.ignore, *([settings.weights_column] if settings.weights_column else [])]


def _split(rows: int, classes: np.ndarray | None, settings: Settings) -> dict[str, np.ndarray]:
    """Row indices of each part by name, sorted; the training rows first."""
    kept, none = np.arange(rows), np.empty(0, dtype=np.int64)
    held = {"test": none, "validation": none}
    for name, fraction in (("test", settings.test_fraction), ("validation", settings.validation_fraction)):
        if fraction == 0:
            continue
        if len(kept) < 3:
            raise TableError(
                f"the table has {rows} {'row' if rows == 1 else 'rows'}, too few to set {fraction:.0%} aside for "
                f"{name}; give more rows, or --{name}-fraction 0"
            )
        inner, outer = split_rows(len(kept), fraction, settings.seed, None if classes is None else classes[kept])
        kept, held[name] = kept[inner], kept[outer]
    return {"training": kept, "validation": held["validation"], "test": held["test"]}


PARTS = ("training", "validation", "test")


def _digest(names: Iterable[str], parts: dict[str, Part], shards: int) -> str:
    """SHA-256 over everything the result depends on: names, row numbers, inputs, targets and weights of each part."""
    if shards > 1:
        return _join_digests(
            names, {name: _shard_digests(part, shard_bounds(len(part), shards)) for name, part in parts.items()}
        )
    total = hashlib.sha256(repr(list(names)).encode())
    for name in PARTS:
        if name in parts:
            _add(total, parts[name], slice(None))
        total.update(b"|")
    return total.hexdigest()


def _shard_digests(part: Part, bounds: np.ndarray) -> list[bytes]:
    """One for each shard of the part's rows, which begin and end at ``bounds``."""
    found = []
    for begin, end in pairwise(bounds - bounds[0]):
        total = hashlib.sha256()
        _add(total, part, slice(begin, end))
        found.append(total.digest())
    return found


def _join_digests(names: Iterable[str], shards: dict[str, list[bytes]]) -> str:
    """From all shards of each part, in order."""
    total = hashlib.sha256(repr(list(names)).encode())
    for name in PARTS:
        total.update(b"".join(shards.get(name, [])) + b"|")
    return total.hexdigest()


def _add(total: hashlib._Hash, part: Part, rows: slice) -> None:
    for values in (part.rows, part.x, part.y, part.weight):
        taken = None if values is None else values[rows]
        total.update(b"-" if taken is None else repr((taken.shape, str(taken.dtype))).encode())
        total.update(b"" if taken is None else np.ascontiguousarray(taken).tobytes())
