"""The comparison's section of a page."""

from __future__ import annotations

from wholebatch.cost.comparison import claim, figures
from wholebatch.cost.comparison.norms import words
from wholebatch.cost.comparison.record import Comparison
from wholebatch.cost.comparison.summary import Summary, answers, missed, notes, summarise
from wholebatch.cost.digits import duration
from wholebatch.pages.section import Cell, Section, Shown, Table, Tile


def describe(record: Comparison) -> Section:
    """Answer, pictures and tables."""
    summaries = summarise(record)
    shown = [Shown(figures.time_per_step(record), _steps_table(summaries))]
    shown += [Shown(picture, None) for picture in figures.to_target(record)]
    if record.target.score is not None:
        shown.append(Shown(None, _target_table(record, summaries)))
    curves = figures.learning(record)
    shown += [Shown(picture, None) for picture in curves] + [Shown(None, _runs_table(record))]
    if record.trials:
        shown.append(Shown(None, _trials_table(record)))
    return Section(
        name="comparison",
        title=f"Norms compared: {record.table}",
        answer=answers(record),
        shown=shown,
        notes=notes(record),
        tiles=_tiles(record, summaries),
    )


def _tiles(record: Comparison, summaries: list[Summary]) -> list[Tile]:
    """Batch norm over none on each engine; then its time to the target."""
    found = [
        Tile(f"{c.ratio:.2f} ×", f"time per step with {words(c.norm)} over none, {claim.place(c.engine)}")
        for c in record.claims
        if c.norm == "batch"
    ]
    for summary in summaries:
        if summary.contender.norm == "batch" and summary.seconds[0] is not None:
            where = claim.place(summary.contender.engine)
            found.append(
                Tile(
                    duration(summary.seconds[0]), f"to {record.score_name} {record.target.score:g}, batch norm, {where}"
                )
            )
    if not found:
        first = summaries[0].contender
        label = f"a step with {words(first.norm)}, {claim.place(first.engine)}"
        found.append(Tile(duration(first.timing.median), label))
    return found[:4]


def _steps_table(summaries: list[Summary]) -> Table:
    rows: list[list[Cell]] = []
    for summary in summaries:
        contender, over = summary.contender, summary.over
        timing = contender.timing
        ratios = (over.ratio, over.low, over.high) if over else (None, None, None)
        rows.append(
            [
                words(contender.norm),
                claim.place(contender.engine),
                contender.threads,
                contender.how,
                contender.parameters,
                *(1e6 * value for value in (timing.median, timing.low, timing.high)),
                *ratios,
            ]
        )
    heads = (
        "norm",
        "engine",
        "threads",
        "variant",
        "parameters",
        "µs per step",
        "p20",
        "p80",
        "over none",
        "p20",
        "p80",
    )
    return Table("Time per step, and over no norm on the same engine", heads, rows)


def _target_table(record: Comparison, summaries: list[Summary]) -> Table:
    rows: list[list[Cell]] = []
    for summary in summaries:
        several = summary.seeds > 1
        steps: list[Cell] = [_whole(value) for value in summary.steps]
        if summary.steps[0] is None:
            steps[0] = missed(summary, record)
        seconds: list[Cell] = [None if value is None else 1e3 * value for value in summary.seconds]
        rows.append(
            [
                words(summary.contender.norm),
                claim.place(summary.contender.engine),
                *(steps if several else [steps[0], None, None]),
                *(seconds if several else [seconds[0], None, None]),
                f"{summary.reached} of {summary.seeds}",
                f"{summary.contender.learning_rate:g}",
                summary.best,
            ]
        )
    heads = ("norm", "engine", "steps", "least", "most", "ms", "least", "most", "seeds that reached it")
    best = f"best {record.score_name}, mean"
    return Table("To the target: median over seeds, least and most", (*heads, "learning rate", best), rows)


def _runs_table(record: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [
            words(run.norm),
            claim.place(run.engine),
            run.seed,
            run.steps_to_target,
            None if run.seconds_to_target is None else 1e3 * run.seconds_to_target,
            run.best,
            run.scores[-1],
            run.steps[-1],
            1e3 * run.seconds[-1],
        ]
        for run in record.runs
    ]
    name = record.score_name
    heads = ("norm", "engine", "seed", "steps to target", "ms to target", f"best {name}", f"last {name}", "steps", "ms")
    return Table("Each training", heads, rows)


def _trials_table(record: Comparison) -> Table:
    rows: list[list[Cell]] = [
        [words(t.norm), f"{t.learning_rate:g}", "diverged" if t.best is None else t.best, "yes" if t.chosen else ""]
        for t in record.trials
    ]
    return Table(
        "Learning rates tried, by the mean of the best scores over seeds",
        ("norm", "learning rate", f"best {record.score_name}", "chosen"),
        rows,
    )


def _whole(value: float | None) -> Cell:
    """Steps are whole but for a median of two."""
    return int(value) if value is not None and value == int(value) else value
