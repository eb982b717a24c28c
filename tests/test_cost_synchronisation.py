"""The choices of synchronisation: the numbers taken together by hand, and what is said about them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cost_recordings import synchronised
from wholebatch import runs
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.synchronisation import summary, words
from wholebatch.cost.synchronisation.measuring import order_notes, take_together
from wholebatch.cost.synchronisation.member import Burst, Entry
from wholebatch.cost.synchronisation.record import Synchronisation
from wholebatch.cost.synchronisation.section import describe
from wholebatch.cost.synchronisation.settings import Wanted, default_choices
from wholebatch.feedforward.data import batch_offsets, prepare
from wholebatch.feedforward.settings import Architecture, Loss, LossKind, Optimizer

RECORD = synchronised()


def changed(**changes: object) -> Synchronisation:
    return Synchronisation.model_validate(RECORD.model_dump() | changes)


def with_scores(none: list[float], late: list[float]) -> Synchronisation:
    """Last scores over each rank alone and a step late, by seed; over all they are 0.9 and 0.91."""
    last = {"all": [0.9, 0.91], "none": none, "late": late}
    trainings = [
        {**t.model_dump(), "scores": [*t.scores[:-1], last[t.choice][t.seed]]}
        for t in RECORD.trainings
        if t.delay == "none"
    ]
    return changed(
        trainings=trainings, straggler=1.0, steps=[s.model_dump() for s in RECORD.steps if s.delay == "none"]
    )


def test_bursts_of_ranks_taken_together_by_hand():
    first = [Burst(10.0, 1.0, 2.0), Burst(12.0, 2.0, 6.0), Burst(11.0, 1.0, 3.0)]
    second = [Burst(11.0, 1.0, 0.0), Burst(11.0, 0.0, 1.0), Burst(20.0, 4.0, 2.0)]
    steps = take_together(Entry("late", "last"), [first, second])
    assert (steps.choice, steps.delay) == ("late", "last")
    assert steps.timing.seconds == [11.0, 12.0, 20.0]  # the slowest rank's
    assert steps.timing.median == 12.0
    assert (steps.exchange, steps.wait, steps.compute) == ([1.0, 1.0], [3.0, 1.0], [7.0, 10.0])
    hidden = take_together(Entry("all", "none"), [[Burst(1.0, 0.7, 0.4)]])  # clocks of their own may disagree a little
    assert hidden.compute == [0.0]


def test_shares_by_hand():
    plain, last, changing = (RECORD.timed("all", delay) for delay in RECORD.delays)
    assert plain is not None
    assert last is not None
    assert changing is not None
    each = summary.waiting(plain)
    assert (each.median, each.low, each.high) == pytest.approx((1e-3, 0.9e-3, 1.2e-3))
    assert (each.compute, each.exchange, each.wait) == pytest.approx((0.8, 0.05, 0.15))
    assert summary.waiting(last).wait == pytest.approx(0.5)  # the last one waits for nobody, and is left out
    assert summary.waiting(changing).wait == pytest.approx(0.3)
    assert (summary.last_one(last).wait, summary.last_one(last).compute) == pytest.approx((0.0, 0.95))
    late = RECORD.timed("late")
    assert late is not None
    assert summary.ratio(late, plain) == pytest.approx(0.875)


def test_differences_are_of_the_same_seeds():
    none, late = summary.compare(RECORD, "none", "all"), summary.compare(RECORD, "late", "all")
    assert none is not None
    assert (none.mean, none.error) == pytest.approx((-0.1, 0.0))
    assert none.is_seen
    assert late is not None
    # Of -0.02 and 0: their standard deviation is 0.02 / sqrt(2), that of the mean 0.01.
    assert (late.mean, late.error) == pytest.approx((-0.01, 0.01))
    assert not late.is_seen
    one = changed(trainings=[t.model_dump() for t in RECORD.trainings if t.seed == 0], seeds=[0])
    alone = summary.compare(one, "late", "all")
    assert alone is not None
    assert (alone.mean, alone.error, alone.is_seen) == (pytest.approx(-0.02), None, False)


def test_a_training_that_diverged_is_left_out_and_told():
    trainings = [t.model_dump() for t in RECORD.trainings]
    for training in trainings:
        if training["choice"] == "none":
            training |= {"diverged": 1, "scores": [0.25], "seconds": [0.0]}
    record = changed(trainings=trainings)
    assert summary.last_scores(record, "none") == {}
    assert summary.compare(record, "none", "all") is None
    assert summary.epoch_seconds(record, "none", "none") is None
    assert "Over each rank alone no training of a seed went well in both." in words.answers(record)
    assert any("ended trainings with batch norm over each rank alone" in note for note in words.notes(record))
    assert describe(record).shown


def test_seconds_of_an_epoch():
    found = [summary.epoch_seconds(RECORD, "none", delay) for delay in RECORD.delays]
    assert found == pytest.approx([0.75, 1.5, 1.5])


def test_scores_with_delays_are_held_against_those_without_by_equality():
    assert summary.is_unchanged(RECORD, "late") is True
    assert any("every one of them equal" in note for note in words.notes(RECORD))
    trainings = [t.model_dump() for t in RECORD.trainings]
    for training in trainings:
        if (training["delay"], training["choice"]) == ("changing", "late"):
            training["scores"][-1] = math.nextafter(training["scores"][-1], 1)
    spoiled = changed(trainings=trainings)
    assert [summary.is_unchanged(spoiled, choice) for choice in ("all", "late")] == [True, False]
    notes = words.notes(spoiled)
    assert any("over all ranks, the others' a step late: that must not be" in note for note in notes)
    assert not any("every one of them equal" in note for note in notes)
    assert summary.is_unchanged(with_scores([0.9, 0.9], [0.9, 0.9]), "all") is None


@pytest.mark.parametrize(
    ("late", "words_"),
    [
        ([0.89, 0.90], "it is lower by 0.0100 (standard error 0.0000, over the same 2 seeds)."),
        # Two seeds have to differ by 12.7 standard errors: 0.064 by 0.005, 0.0635 by 0.005 is too little.
        ([0.959, 0.979], "it is higher by 0.0640 (standard error 0.0050, over the same 2 seeds)."),
        ([0.9585, 0.9785], "it is +0.0635 (standard error 0.0050, over the same 2 seeds), which they cannot tell from"),
        ([0.92, 0.90], "it is +0.0050 (standard error 0.0150, over the same 2 seeds), which they cannot tell from"),
        ([0.9, 0.91], "it is +0.0000 (standard error 0.0000, over the same 2 seeds), which they cannot tell from"),
    ],
)
def test_the_sentences_say_whichever_way_it_came_out(late: list[float], words_: str):
    said = words.answers(with_scores([0.8, 0.81], late))
    assert said[0] == (
        "With batch norm over all 2 ranks a step takes 1.00 ms, of which a rank waits 15 % and exchanges for 5.0 %; "
        "over each rank alone it takes 750 µs (0.75 times as long, waiting 15 %); over all ranks, the others' a step "
        "late it takes 875 µs (0.88 times as long, waiting 15 %)."
    )
    assert said[1] == (
        "After 2 epochs the accuracy of the validation rows is 0.9050 with batch norm over all 2 ranks, the mean of 2 "
        "seeds."
    )
    assert f"Over all ranks, the others' a step late {words_}" in said[-1]


def test_delays_in_words():
    _, last, changing, *_ = words.answers(RECORD)
    assert last.startswith(
        "Where rank 1 always computes 2 times as long, with batch norm over all 2 ranks a step takes 2.00 ms, of which "
        "the other rank waits 50 % and exchanges for 5.0 %; over each rank alone it takes 1.50 ms (0.75 times as long"
    )
    assert changing.startswith(
        "Where now one rank and now another computes 2 times as long, with batch norm over all 2 ranks a step takes "
        "2.00 ms, of which a rank waits 30 %"
    )


def test_one_seed_is_no_proof():
    kept = [t.model_dump() for t in RECORD.trainings if t.seed == 0]
    record = changed(trainings=kept, seeds=[0])
    assert "lower by 0.0200 from the one seed, which may be chance." in words.answers(record)[-1]
    assert any(note.startswith("One seed:") for note in words.notes(record))


def test_without_all_the_first_choice_is_the_measure():
    keep = ("none", "late")
    record = changed(
        choices=list(keep),
        steps=[s.model_dump() for s in RECORD.steps if s.choice in keep],
        trainings=[t.model_dump() for t in RECORD.trainings if t.choice in keep],
    )
    assert words.base_of(record) == "none"
    assert words.answers(record)[0].startswith("With batch norm over each rank alone a step takes 750 µs")
    assert describe(record).tiles[0].label == "a step with batch norm over each rank alone"


def test_a_busy_machine_and_too_few_cores_are_told():
    steps = [s.model_dump() for s in RECORD.steps]
    steps[0]["timing"] |= {"low": 0.5e-3, "high": 1e-3}
    notes = words.notes(changed(steps=steps, cores=1, validation_rows=50))
    for start in ("There are more ranks than the 1 cores", "The machine was busy", "Only 50 validation rows"):
        assert any(note.startswith(start) for note in notes)
    assert not any(note.startswith(("There are more", "The machine")) for note in words.notes(RECORD))
    assert words.notes(RECORD)[-1] == "column 'same' is left out"


def problem(y: np.ndarray, kind: LossKind) -> Problem:
    architecture, loss = Architecture(1, (4,), 2 if kind == "cross_entropy" else 1), Loss(kind)
    rows = prepare(np.zeros((len(y), 1)), y, None, architecture, loss, torch.float32)
    return Problem(
        rows, rows, loss, replace(architecture, norm="none"), Optimizer(), batch_offsets(len(y), 8, architecture)
    )


def test_a_table_that_is_ordered_by_its_target_is_told():
    by_class = np.repeat([0, 1], 50)
    (note,) = order_notes(problem(by_class, "cross_entropy"), 2)
    assert "50% of a rank's rows would have to be of another class" in note
    assert order_notes(problem(np.tile([0, 1], 50), "cross_entropy"), 2) == []
    rising = np.linspace(0, 1, 100)
    (note,) = order_notes(problem(rising, "mse"), 2)
    assert "lies 0.87 standard deviations" in note  # 1/4 over 1/sqrt(12)
    assert order_notes(problem(rising[np.random.default_rng(0).permutation(100)], "mse"), 2) == []


SETTINGS = runs.Settings(table="digits", target=("digit",), batch_size=32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"processes": 1}, "processes is 1; there is nobody to synchronise with: choose at least 2"),
        ({"choices": ("all", "all")}, "choices are all, all; name at least one, each once"),
        ({"processes": 3, "choices": ("group",)}, "3 ranks cannot be cut into groups of 1; choose a group size"),
        ({"processes": 4, "choices": ("group",), "group_size": 3}, "4 ranks cannot be cut into groups of 3"),
        ({"processes": 4, "choices": ("group",), "group_size": 4}, "leaves more than one group"),
        ({"processes": 4, "group_size": 2}, "group_size is 2, but 'group' is not among the choices"),
        ({"straggler": 0.5}, "straggler is 0.5; a rank can be 1 (none) to 100 times as slow"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"processes": 17}, "batch_size is 32, which leaves fewer than 2 rows to each of 17 ranks"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, object], said: str):
    with pytest.raises(ValueError) as refused:
        Wanted(SETTINGS, **given)  # type: ignore[arg-type]
    assert said in str(refused.value)


def test_groups_are_measured_where_there_can_be_some():
    assert default_choices(2, None) == ("all", "none", "late")
    assert default_choices(4, None) == ("all", "group", "none", "late")
    assert default_choices(6, 3) == ("all", "group", "none", "late")
    assert Wanted(SETTINGS, processes=4, choices=("group",)).group == 2
