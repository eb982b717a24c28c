"""The section of the choices of synchronisation on a page."""

from __future__ import annotations

from wholebatch.cost.digits import duration
from wholebatch.cost.synchronisation import figures
from wholebatch.cost.synchronisation.record import Delay, Synchronisation
from wholebatch.cost.synchronisation.summary import compare, epoch_seconds, is_unchanged, last_scores, ratio, waiting
from wholebatch.cost.synchronisation.words import answers, base_of, notes, percent, whose
from wholebatch.pages.section import Cell, Section, Shown, Table, Tile

HELD_UP: dict[Delay, str] = {"none": "nobody", "last": "the last", "changing": "changing"}


def describe(record: Synchronisation) -> Section:
    """Answer, pictures and tables."""
    steps = [Shown(picture, None) for picture in figures.steps(record)]
    curves = [Shown(picture, None) for picture in figures.curves(record)]
    return Section(
        name="synchronisation",
        title=f"Whose rows batch norm is over, on {record.ranks} ranks: {record.table}",
        answer=answers(record),
        shown=[*steps, Shown(None, _steps(record)), *curves, Shown(None, _scores(record)), Shown(None, _runs(record))],
        notes=notes(record),
        tiles=_tiles(record),
    )


def _tiles(record: Synchronisation) -> list[Tile]:
    base = base_of(record)
    first = record.timed(base)
    assert first is not None
    found = [
        Tile(duration(first.timing.median), f"a step with batch norm over {whose(record, base)}"),
        Tile(percent(waiting(first).wait), "of it a rank waits for the others"),
    ]
    held = record.timed(base, "last")
    if held is not None:
        label = f"of a step, where one rank computes {record.straggler:g} times as long"
        found.append(Tile(percent(waiting(held).wait), label))
    other = next((choice for choice in ("late", "none", "group") if choice in record.choices and choice != base), None)
    difference = None if other is None else compare(record, other, base)
    if other is not None and difference is not None:
        found.append(Tile(f"{difference.mean:+.4f}", f"{record.score_name}: {other} minus {base}"))
    return found


def _steps(record: Synchronisation) -> Table:
    rows: list[list[Cell]] = []
    for one in record.steps:
        base = record.timed(base_of(record), one.delay)
        for rank in range(record.ranks):
            timing = one.timing
            rows.append(
                [
                    whose(record, one.choice),
                    HELD_UP[one.delay],
                    f"{rank}",
                    *(1e6 * value for value in (timing.median, timing.low, timing.high)),
                    None if base is None else ratio(one, base),
                    *(1e6 * part[rank] for part in (one.compute, one.wait, one.exchange)),
                ]
            )
    over = f"over {base_of(record)}"
    heads = ("batch norm over", "held up", "rank", "µs per step", "p20", "p80", over, "compute", "wait", "exchange")
    return Table("Steps, and what each rank does in them; microseconds, medians over rounds", heads, rows)


def _scores(record: Synchronisation) -> Table:
    base, rows = base_of(record), list[list[Cell]]()
    times = [f"seconds of an epoch, held up: {HELD_UP[delay]}" for delay in record.delays]
    for choice in record.choices:
        found = list(last_scores(record, choice).values())
        difference = None if choice == base else compare(record, choice, base)
        same = is_unchanged(record, choice)
        rows.append(
            [
                whose(record, choice),
                sum(found) / len(found) if found else "diverged",
                min(found, default=None),
                max(found, default=None),
                None if difference is None else difference.mean,
                None if difference is None else difference.error,
                None if same is None else "equal" if same else "DIFFERENT",
                *(epoch_seconds(record, choice, delay) for delay in record.delays),
            ]
        )
    heads = ("batch norm over", "mean", "least", "most", f"minus {base}", "standard error", "with delays", *times)
    return Table(f"Last {record.score_name}, over {len(record.seeds)} seeds", heads, rows)


def _runs(record: Synchronisation) -> Table:
    rows: list[list[Cell]] = [
        [
            whose(record, training.choice),
            HELD_UP[training.delay],
            training.seed,
            len(training.scores) - 1,
            training.seconds[-1],
            max(training.scores),
            training.scores[-1],
            training.diverged,
        ]
        for training in record.trainings
    ]
    name = record.score_name
    heads = ("batch norm over", "held up", "seed", "epochs", "seconds", f"best {name}", f"last {name}", "diverged in")
    return Table("Each training", heads, rows)
