"""The section of the choices of synchronisation on a page."""

from __future__ import annotations

from wholebatch.cost.comparison.summary import duration
from wholebatch.cost.synchronisation import figures
from wholebatch.cost.synchronisation.record import Synchronisation
from wholebatch.cost.synchronisation.summary import compare, everyone, is_unchanged, last_scores, others, ratio
from wholebatch.cost.synchronisation.words import answers, base_of, notes, percent, whose
from wholebatch.pages.section import Cell, Section, Shown, Table, Tile


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
    first = record.timed(base, slow=False)
    assert first is not None
    found = [
        Tile(duration(first.timing.median), f"a step with batch norm over {whose(record, base)}"),
        Tile(percent(everyone(first).wait), "of it a rank waits for the others"),
    ]
    slow = record.timed(base, slow=True)
    if slow is not None:
        label = f"of a step, where one rank computes {record.straggler:g} times as long"
        found.append(Tile(percent(others(slow).wait), label))
    other = next((choice for choice in ("late", "none", "group") if choice in record.choices and choice != base), None)
    difference = None if other is None else compare(record, other, base)
    if other is not None and difference is not None:
        found.append(Tile(f"{difference.mean:+.4f}", f"{record.score_name}: {other} minus {base}"))
    return found


def _steps(record: Synchronisation) -> Table:
    rows: list[list[Cell]] = []
    for one in record.steps:
        base = record.timed(base_of(record), slow=one.slow)
        for rank in range(record.ranks):
            timing = one.timing
            rows.append(
                [
                    whose(record, one.choice),
                    f"{rank}, {record.straggler:g} × as long" if one.slow and rank == record.ranks - 1 else f"{rank}",
                    *(1e6 * value for value in (timing.median, timing.low, timing.high)),
                    None if base is None else ratio(one, base),
                    *(1e6 * part[rank] for part in (one.compute, one.wait, one.exchange)),
                ]
            )
    over = f"over {base_of(record)}"
    heads = ("batch norm over", "rank", "µs per step", "p20", "p80", over, "compute", "wait", "exchange")
    return Table("Steps, and what each rank does in them; microseconds, medians over rounds", heads, rows)


def _scores(record: Synchronisation) -> Table:
    base, rows = base_of(record), list[list[Cell]]()
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
            ]
        )
    heads = ("batch norm over", "mean", "least", "most", f"minus {base}", "standard error", "with the slow rank")
    return Table(f"Last {record.score_name}, over {len(record.seeds)} seeds", heads, rows)


def _runs(record: Synchronisation) -> Table:
    rows: list[list[Cell]] = [
        [
            whose(record, training.choice),
            "yes" if training.slow else "no",
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
    heads = ("batch norm over", "slow rank", "seed", "epochs", "seconds", f"best {name}", f"last {name}", "diverged in")
    return Table("Each training", heads, rows)
