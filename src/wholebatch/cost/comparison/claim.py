"""The claim that is often heard, "3 to 5 times slower per step", against measured rounds.

A ratio is that of the medians; its spread is the 20th to the 80th percentile of the single rounds' ratios, whose two
halves ran within the same moment, so that a noisy machine hits both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wholebatch.cost.comparison.norms import words
from wholebatch.cost.comparison.record import Answer, Claim, Contender

CLAIMED = (3.0, 5.0)
CHECKED = ("batch", "batch-after", "layer", "rms")
BASE = "none"
VERDICTS: dict[Answer, str] = {
    "free": "does not hold",
    "less": "does not hold",
    "holds": "holds",
    "more": "is too little",
    "unclear": "can be neither confirmed nor denied",
}


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """(ratio of the medians, p20 and p80 of the rounds' own ratios)."""
    pairs = np.divide(above, below)
    low, high = np.quantile(pairs, [0.2, 0.8])
    return float(np.median(above) / np.median(below)), float(low), float(high)


def answer(value: float, low: float, high: float) -> Answer:
    """What the ratio ``value``, with its rounds between ``low`` and ``high``, says about the claim.

    ``free``: the rounds lie around 1 or below it; ``less``: all of ``low..high`` is below 3; ``holds``: all of it lies
    in 3..5; ``more``: all of it is above 5; ``unclear``: it lies across one of these bounds.
    """
    least, most = CLAIMED
    low, high = min(low, value), max(high, value)  # the ratio of medians need not lie among the rounds' ratios
    if low <= 1.0 and high < least:
        return "free"
    if high < least:
        return "less"
    if low > most:
        return "more"
    return "holds" if low >= least and high <= most else "unclear"


def check(contenders: Sequence[Contender]) -> list[Claim]:
    """The claim for each norm and engine that was measured together with no norm at all."""
    base = {c.engine: c for c in contenders if c.norm == BASE}
    found = []
    for contender in contenders:
        if contender.norm in CHECKED and contender.engine in base:
            value, low, high = ratio(contender.timing.seconds, base[contender.engine].timing.seconds)
            found.append(
                Claim(
                    norm=contender.norm,
                    engine=contender.engine,
                    ratio=value,
                    low=low,
                    high=high,
                    answer=answer(value, low, high),
                )
            )
    return found


def sentence(claim: Claim) -> str:
    """What was found, in words."""
    who, where = words(claim.norm), place(claim.engine)
    measured = f"a step with {who} took {claim.ratio:.2f} times as long as without a norm (rounds: {spread(claim)})"
    return {
        "free": f'On {where}, {measured}: no slowdown that stands out of the noise, so "3 to 5 times slower" does '
        "not hold here.",
        "less": f'On {where}, {measured}: slower, but "3 to 5 times slower" does not hold here.',
        "holds": f'On {where}, {measured}: "3 to 5 times slower" holds here.',
        "more": f'On {where}, {measured}: here it is even more than "3 to 5 times slower".',
        "unclear": f'On {where}, {measured}: this lies across the bounds of "3 to 5 times slower", so neither yes '
        "nor no can be said.",
    }[claim.answer]


def headline(claims: Sequence[Claim]) -> str:
    """One norm's claims, an engine each, in one sentence that is a full answer."""
    times = " and ".join(f"{claim.ratio:.2f} times on {place(claim.engine)}" for claim in claims)
    verdicts = {claim.engine: VERDICTS[claim.answer] for claim in claims}
    if len(set(verdicts.values())) == 1:
        found = f"{next(iter(verdicts.values()))} on this machine"
    else:
        found = ", ".join(f"{verdict} on {place(engine)}" for engine, verdict in verdicts.items())
    who = words(claims[0].norm)
    return f'With {who} a step took {times} as long as without a norm: "3 to 5 times slower" {found}.'


def place(engine: str) -> str:
    """The engine in a sentence."""
    return "torch eager" if engine == "torch" else engine


def spread(claim: Claim, to: str = " to ") -> str:
    """The middle of the rounds' ratios."""
    return f"{claim.low:.2f}{to}{claim.high:.2f}"
