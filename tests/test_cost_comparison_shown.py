"""What console and page say of a comparison."""

from __future__ import annotations

import math

import pytest

from comparisons import make_record, printed
from wholebatch.cost.comparison.record import Comparison, Trial
from wholebatch.cost.comparison.section import describe
from wholebatch.cost.comparison.summary import answers, missed, summarise
from wholebatch.cost.digits import duration
from wholebatch.cost.timing import Timing


def test_the_console_says_not_reached_in_place_of_a_number():
    said = printed(make_record())
    rows = {line.split("  ")[0].strip(): line for line in said.splitlines() if "wholebatch " in line}
    assert "not reached in 20 steps" in rows["none"]
    assert "not reached in 20 steps (1 of 3 seeds did)" in rows["layer"]
    assert "20 [20 – 20]" in rows["batch"]
    assert "1.00 s [1.00 – 1.00]" in rows["batch"]
    assert "1.50 ms [1.41 – 1.59]" in rows["batch"]
    assert "as asked for" in said
    assert "batch norm was there first, after 20 steps and 1.00 s; no norm: not reached in 20 steps" in said


def test_one_seed_has_no_spread():
    said = printed(make_record(seeds=1))
    row = next(line for line in said.splitlines() if line.strip().startswith("batch "))
    assert "20 [–]" in row
    assert "1.00 s [–]" in row
    assert "One seed: differences between norms may be chance" in said
    table = next(
        shown.table for shown in describe(make_record(seeds=1)).shown if shown.table and "To the" in shown.table.caption
    )
    assert list(table.rows[0][2:8]) == [20, None, None, 1000.0, None, None]


def test_nothing_learned_is_said_and_has_no_picture_of_a_target():
    record = make_record(target=None)
    said = " ".join(answers(record))
    assert "No norm learned to predict <i>y</i> better than a constant does (accuracy 0.1000)" in said
    names = [shown.picture.name for shown in describe(record).shown if shown.picture]
    assert names == ["comparison-step", "comparison-score-step", "comparison-score-second-wholebatch"]


def test_a_target_that_nobody_reached_has_a_table_and_no_bars():
    section = describe(make_record(target=0.99))
    assert not [s for s in section.shown if s.picture and s.picture.name in ("comparison-steps", "comparison-time")]
    table = next(shown.table for shown in section.shown if shown.table and "To the" in shown.table.caption)
    assert [row[2] for row in table.rows] == ["not reached in 20 steps"] * 3
    assert "On wholebatch no norm reached it within 20 steps." in section.answer


def test_diverged_trainings_are_told():
    record = make_record()
    for run in record.runs:
        if run.norm == "none":
            run.diverged = 7
    summary = summarise(record)[2]
    assert missed(summary, record) == "diverged"
    assert any("no longer finite" in note and "no norm on wholebatch" in note for note in describe(record).notes)


def test_learning_rates_that_were_tried_are_told():
    trials = [
        Trial(norm="batch", learning_rate=0.01, best=0.9, mean=0.5, chosen=True),
        Trial(norm="batch", learning_rate=0.1, best=None, mean=None, chosen=False),
    ]
    record = make_record(trials=trials, trials_engine="wholebatch")
    assert "diverged" in printed(record)
    section = describe(record)
    assert any("0.01, 0.1 were tried" in note and "batch norm 0.01" in note for note in section.notes)
    assert section.shown[-1].table is not None
    assert section.shown[-1].table.rows[1][2] == "diverged"


def test_the_section_shows_what_the_record_has():
    record = make_record()
    section = describe(record)
    pictures = {shown.picture.name: shown.picture for shown in section.shown if shown.picture}
    assert len(pictures) == 5
    bars = [trace for trace in pictures["comparison-steps"].figure.data if trace.x[0] is not None]
    assert [list(trace.y) for trace in bars] == [[20.0, 0.0, 0.0]]
    assert list(bars[0].text) == ["", "not reached", "not reached"]
    steps = [trace for trace in pictures["comparison-step"].figure.data if trace.x[0] is not None]
    assert list(steps[0].y) == pytest.approx([1500.0, 1000.0, 1000.0])
    assert list(steps[0].text) == ["1.50 ×", "1.00 ×", ""]
    line = next(t for t in pictures["comparison-score-step"].figure.data if t.name == "batch")
    assert (list(line.x), list(line.y)) == ([0, 10, 20], pytest.approx([0.1, 0.7, 0.85]))
    assert [tile.value for tile in section.tiles] == ["1.50 ×", "1.00 s"]
    assert section.answer[0].startswith("With batch norm a step took 1.50 times on wholebatch as long as without")


def test_the_best_so_far_by_second_never_falls():
    record = make_record()
    for run in record.runs:
        run.scores = [0.1, 0.9, 0.4]
    figure = next(s.picture.figure for s in describe(record).shown if s.picture and "second" in s.picture.name)
    lines = [trace for trace in figure.data if trace.name]
    assert len(lines) == 3
    assert all(list(trace.y) == pytest.approx([0.1, 0.9, 0.9]) for trace in lines)


def test_a_record_survives_json():
    record = make_record()
    assert Comparison.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValueError, match="finite"):
        Timing(seconds=[math.nan], steps=1, median=1.0, low=1.0, high=1.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0 s"),
        (3.214e-6, "3.21 µs"),
        (352.9e-6, "353 µs"),
        (0.99996e-3, "1.00 ms"),
        (0.0205, "20.5 ms"),
        (1.2345, "1.23 s"),
        (99.97, "100 s"),
        (None, "–"),
    ],
)
def test_durations_have_three_digits(seconds: float | None, said: str):
    assert duration(seconds) == said
