"""The choices of synchronisation in sentences."""

from __future__ import annotations

from wholebatch.cost.digits import duration, four_decimals
from wholebatch.cost.subject import doubt_rows, doubt_seeds
from wholebatch.cost.synchronisation.record import Choice, Delay, Synchronisation
from wholebatch.cost.synchronisation.summary import (
    Difference,
    compare,
    is_unchanged,
    last_scores,
    ratio,
    waiting,
)
from wholebatch.cost.timing import doubt_machine


def whose(record: Synchronisation, choice: Choice) -> str:
    """Whose rows batch norm is over."""
    return {
        "all": f"all {record.ranks} ranks",
        "group": f"groups of {record.group_size}",
        "none": "each rank alone",
        "late": "all ranks, the others' a step late",
    }[choice]


def base_of(record: Synchronisation) -> Choice:
    """What the others are held against: all ranks, or the first choice where that was not measured."""
    return "all" if "all" in record.choices else record.choices[0]


def percent(share: float) -> str:
    """``9 %``, ``0.4 %``."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def answers(record: Synchronisation) -> list[str]:
    """What was found; the first sentence alone is a full answer."""
    return [*(_steps(record, delay) for delay in record.delays), *_scores(record)]


def who_is_late(record: Synchronisation, delay: Delay) -> str:
    """Who is held up, as a part of a sentence."""
    times = f"{record.straggler:g} times as long"
    return {
        "none": "",
        "last": f"Where rank {record.ranks - 1} always computes {times}",
        "changing": f"Where now one rank and now another computes {times}",
    }[delay]


def _steps(record: Synchronisation, delay: Delay) -> str:
    base = base_of(record)
    first = record.timed(base, delay)
    assert first is not None
    parts, lead = waiting(first), who_is_late(record, delay)
    who = "a rank waits" if delay != "last" else "the other rank waits" if record.ranks == 2 else "another rank waits"
    said = (
        f"{lead + ', with' if lead else 'With'} batch norm over {whose(record, base)} a step takes "
        f"{duration(parts.median)}, of which {who} {percent(parts.wait)} and exchanges for {percent(parts.exchange)}"
    )
    rest = []
    for choice in record.choices:
        one = record.timed(choice, delay)
        if choice == base or one is None:
            continue
        of_one = waiting(one)
        rest.append(
            f"over {whose(record, choice)} it takes {duration(of_one.median)} ({ratio(one, first):.2f} times as long, "
            f"waiting {percent(of_one.wait)})"
        )
    return "; ".join([said, *rest]) + "."


def _scores(record: Synchronisation) -> list[str]:
    base, several = base_of(record), len(record.seeds) > 1
    found = last_scores(record, base)
    if not found:
        return [f"With batch norm over {whose(record, base)} every training diverged; choose a lower learning rate."]
    mean = sum(found.values()) / len(found)
    of = f", the mean of {len(found)} seeds" if several else ""
    said = [
        f"After {record.epochs} epochs the {record.score_name} of the validation rows is {four_decimals(mean)} with "
        f"batch norm over {whose(record, base)}{of}."
    ]
    for choice in record.choices:
        if choice == base:
            continue
        difference = compare(record, choice, base)
        if difference is None:
            said.append(f"Over {whose(record, choice)} no training of a seed went well in both.")
        else:
            said.append(f"Over {whose(record, choice)} it is {_verdict(difference)}.")
    return said


def _verdict(difference: Difference) -> str:
    by = four_decimals(abs(difference.mean))
    way = "higher" if difference.mean > 0 else "lower"
    if difference.error is None:
        return f"{way} by {by} from the one seed, which may be chance" if difference.mean else "the same from one seed"
    error = f"standard error {four_decimals(difference.error)}, over the same {difference.seeds} seeds"
    if difference.is_seen:
        return f"{way} by {by} ({error})"
    return f"{difference.mean:+.4f} ({error}), which they cannot tell from chance"


def notes(record: Synchronisation) -> list[str]:
    """How it was measured, and what is doubtful."""
    ranks = record.ranks
    said = [
        f"{record.net}, learning rate {record.learning_rate:g}, mini-batches of {record.batch_size}, so about "
        f"{record.batch_size / ranks:.0f} rows on each of {ranks} ranks; {record.training}",
        "Every choice begins with the same weights and sees the same rows in the same mini-batches; each rank owns a "
        "shard of the table and shuffles it by itself. Gradients are those of the whole mini-batch in every case, so "
        "the ranks meet once a step whatever is chosen; running statistics are those of the whole mini-batch, too.",
        f"Time per step: {len(record.steps[0].timing.seconds)} interleaved rounds, each a burst of every choice in a "
        f"new order, of {ranks} ranks of one thread on {record.cores} cores; of the ranks the slowest counts. What an "
        "epoch costs beside its steps is spread over them, as compute.",
        "Wait: until what all other ranks tell is there. Exchange: telling them, and merging what they told; "
        "adding up their weight gradients counts as compute. What is hidden behind compute is in neither.",
        "Scores are those after each epoch; their seconds are of training alone, with the choices' epochs in turn.",
    ]
    if record.straggler > 1:
        said += _of_delays(record)
    if ranks > record.cores:
        said.append(
            f"There are more ranks than the {record.cores} cores: a rank that has no core lets the others wait, and "
            "times say little. Choose fewer --processes."
        )
    said += doubt_machine(
        (steps.timing for steps in record.steps), "the rounds of a choice differ", "Measure again on a quiet machine."
    )
    said += doubt_seeds(record, "choices")
    said += doubt_rows(record.validation_rows)
    lost = [c for c in record.choices if any(t.diverged is not None for t in record.trained(c))]
    if lost:
        names = ", ".join(whose(record, choice) for choice in lost)
        said.append(f"Values that were no longer finite ended trainings with batch norm over {names}.")
    return [*said, *record.notes]


def _of_delays(record: Synchronisation) -> list[str]:
    times = f"{record.straggler:g} times as long"
    said = [
        f"A rank is held up by idling after a computation until it has taken {times}. If it is always rank "
        f"{record.ranks - 1}, all wait for it at the sum of gradients in any case: who does not meet at layers waits "
        "there instead.",
        "If it is now one rank and now another, one of them after each computation, drawn by a fixed rule, those who "
        "meet at layers wait for each delay; for the others delays within a step are under way at the same time.",
    ]
    found = {choice: is_unchanged(record, choice) for choice in record.choices}
    changed = [whose(record, choice) for choice, same in found.items() if same is False]
    if changed:
        said.append(
            f"The scores of a training with delays differ from those without over {', '.join(changed)}: that "
            "must not be, and is a fault of this library; please report it."
        )
    elif any(same is not None for same in found.values()):
        said.append(
            f"With delays, the training from seed {record.seeds[0]} had the same scores, every one of them equal: a "
            "wait changes no number."
        )
    return said
