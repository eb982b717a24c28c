"""What console and page both say: a contender's trainings taken together, and the sentences of the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wholebatch.cost.comparison import claim
from wholebatch.cost.comparison.norms import words
from wholebatch.cost.comparison.reaching import WELL_TRAINED, middle
from wholebatch.cost.comparison.record import Claim, Comparison, Contender
from wholebatch.cost.digits import duration, four_decimals
from wholebatch.cost.subject import doubt_seeds
from wholebatch.cost.timing import doubt_machine

Spread = tuple[float | None, float | None, float | None]
"""Median, least and most over seeds; None: not within this training."""


@dataclass(frozen=True)
class Summary:
    """A contender and its trainings.

    Attributes:
        over: how its step compares with none's on the same engine; None where that was not measured.
        steps, seconds: to the target.
        reached: trainings that have it, of ``seeds``.
        diverged: trainings that ended early because a value was no longer finite.
        best: mean over seeds of the highest validation score.
    """

    contender: Contender
    over: Claim | None
    steps: Spread
    seconds: Spread
    reached: int
    seeds: int
    diverged: int
    best: float


def summarise(record: Comparison) -> list[Summary]:
    """Every contender, in the order of the record."""
    claims = {(c.norm, c.engine): c for c in record.claims}
    found = []
    for contender in record.contenders:
        runs = record.of(contender)
        found.append(
            Summary(
                contender=contender,
                over=claims.get((contender.norm, contender.engine)),
                steps=middle([run.steps_to_target for run in runs]),
                seconds=middle([run.seconds_to_target for run in runs]),
                reached=sum(run.steps_to_target is not None for run in runs),
                seeds=len(runs),
                diverged=sum(run.diverged is not None for run in runs),
                best=float(np.mean([run.best for run in runs])),
            )
        )
    return found


def missed(summary: Summary, record: Comparison) -> str:
    """In place of a number that is not there."""
    if summary.diverged == summary.seeds:
        return "diverged"
    some = f" ({summary.reached} of {summary.seeds} seeds did)" if summary.reached else ""
    return f"not reached in {record.steps:,} steps{some}"


def answers(record: Comparison) -> list[str]:
    """What was found: the claim for batch norm, the target and who reached it, then the claim norm by norm."""
    kinds: list[list[Claim]] = [
        [c for c in record.claims if c.norm == norm] for norm in ("batch", "batch-after", "layer", "rms")
    ]
    kinds = [claims for claims in kinds if claims]
    found = [claim.headline(kinds[0])] if kinds else []
    found += _to_target(record)
    return found + [claim.sentence(c) for claims in kinds[:1] for c in claims] + [claim.headline(c) for c in kinds[1:]]


def _to_target(record: Comparison) -> list[str]:
    """The target, and for each engine who was there first, and when batch norm and no norm were."""
    target, summaries = record.target, summarise(record)
    if target.score is None:
        return [
            f"No norm learned to predict {', '.join(record.target_columns)} better than a constant does "
            f"({record.score_name} {four_decimals(target.constant)}), so there is no target to reach."
        ]
    said = [target_sentence(record)]
    for engine in dict.fromkeys(s.contender.engine for s in summaries):
        those = [s for s in summaries if s.contender.engine == engine]
        reached = [(s.seconds[0], s) for s in those if s.seconds[0] is not None]
        if not reached:
            said.append(f"On {claim.place(engine)} no norm reached it within {record.steps:,} steps.")
            continue
        _, fastest = min(reached, key=lambda pair: pair[0])
        others = [s for s in those if s is not fastest and s.contender.norm in ("batch", "none")]
        where = f"On {claim.place(engine)}{', in the median over seeds,' if len(record.seeds) > 1 else ''}"
        sentence = f"{where} {words(fastest.contender.norm)} was there first, {_when(fastest, record)}"
        said.append("; ".join([sentence, *(f"{words(s.contender.norm)}: {_when(s, record)}" for s in others)]))
    return [f"{sentence.rstrip('.')}." for sentence in said]


def _when(summary: Summary, record: Comparison) -> str:
    if summary.steps[0] is None:
        return missed(summary, record)
    return f"after {summary.steps[0]:,g} steps and {duration(summary.seconds[0])}"


def target_sentence(record: Comparison) -> str:
    """The target and where it comes from."""
    target = record.target
    assert target.score is not None
    if target.given:
        return f"The target: a validation {record.score_name} of at least {target.score:g}, as asked for."
    assert target.norm is not None
    return (
        f"The target: a validation {record.score_name} of at least {target.score:g}, the best that the weakest "
        f"training which counts as well trained reached (with {words(target.norm)})."
    )


def notes(record: Comparison) -> list[str]:
    """How it was measured, and what is doubtful."""
    rates = sorted({contender.learning_rate for contender in record.contenders})
    said = [
        f"{record.net}, mini-batches of {record.batch_size}, {record.training}",
        "Every contender begins with the same weights in its linear layers and sees the same mini-batches in the same "
        "order; the learning rate is constant.",
        f"Each ran with 1 or {record.most_threads} threads, and torch with its fused or its foreach optimizer, "
        "whichever was faster in a short trial."
        if record.most_threads > 1
        else "Each ran with 1 thread, and torch with its fused or its foreach optimizer, whichever was faster in a "
        "short trial.",
        f"Time per step: {len(record.contenders[0].timing.seconds)} interleaved rounds, each a burst of every "
        "contender in a new order; what an epoch costs beside its steps is spread over them.",
        f"Each training is scored every {record.evaluated_every} steps, so steps to the target are known no better; "
        "its time comes from a second training over the same mini-batches, which is not stopped to be scored.",
    ]
    if record.trials:
        tried = ", ".join(f"{rate:g}" for rate in dict.fromkeys(t.learning_rate for t in record.trials))
        chosen = ", ".join(f"{words(t.norm)} {t.learning_rate:g}" for t in record.trials if t.chosen)
        said.append(
            f"Learning rates {tried} were tried for each norm on {claim.place(record.trials_engine or '')}; the one of "
            f"the highest validation score was taken for both engines: {chosen}."
        )
    else:
        said.append(
            f"All were trained with the learning rate {rates[0]:g}, which was not tuned: a norm can do better with one "
            "of its own (--learning-rates 0.001,0.003,0.01)."
        )
    if not record.target.given and record.target.score is not None:
        said.append(
            f"A training counts as well trained where it closes {WELL_TRAINED:.0%} of the gap between a constant "
            f"prediction ({record.score_name} {four_decimals(record.target.constant)}) and the best training. The "
            "target is taken from these same trainings, so the weakest of them reaches it at its peak; --target-score "
            "sets one beforehand."
        )
    said += doubt_machine(
        (contender.timing for contender in record.contenders),
        "a contender's rounds differ",
        "Trust ratios with a narrow spread, or measure again on a quiet machine.",
    )
    said += doubt_seeds(record, "norms")
    diverged = [s for s in summarise(record) if s.diverged]
    if diverged:
        names = ", ".join(f"{words(s.contender.norm)} on {claim.place(s.contender.engine)}" for s in diverged)
        said.append(f"Values that were no longer finite ended trainings of: {names}; a lower learning rate may help.")
    return [*said, *record.notes]
