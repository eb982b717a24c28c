"""What a recording keeps of the choices of synchronisation: every timed round and every score, and what was asked."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.cost.subject import Subject
from wholebatch.cost.timing import Timing
from wholebatch.cost.values import Finite, Seconds

Choice = Literal["all", "group", "none", "late"]
"""Whose rows batch norm is over in training, see :class:`wholebatch.feedforward.spread.Spread`."""
Delay = Literal["none", "last", "changing"]
"""Who is held up: nobody; the last rank, always; or, after each computation, one rank, now this one and now that."""


class Steps(BaseModel):
    """Steps of one choice. A step's parts are medians over rounds, in seconds, by rank.

    Attributes:
        choice: whose rows batch norm is over.
        delay: who was held up.
        timing: of a step, the slowest rank's.
        compute: what a rank does by itself, the idling of one that is held up too.
        exchange: telling the others, and merging what they told.
        wait: for what the others have to tell.
    """

    model_config = ConfigDict(extra="forbid")

    choice: Choice
    delay: Delay
    timing: Timing
    compute: list[Seconds]
    exchange: list[Seconds]
    wait: list[Seconds]


class Training(BaseModel):
    """One training from one seed; after ``e`` epochs it scored ``scores[e]``, and had taken ``seconds[e]``.

    Attributes:
        choice: whose rows batch norm was over.
        delay: who was held up.
        seed: of first weights and shuffling; the same for every choice.
        seconds: of training alone, the slowest rank's: evaluations are not counted. The first is 0.
        scores: accuracy, exact match or R2 of the validation rows; higher is better. The first is before any training.
        diverged: the epoch in which a value was no longer finite, which ended the training; None where all went well.
    """

    model_config = ConfigDict(extra="forbid")

    choice: Choice
    delay: Delay
    seed: int
    seconds: list[Seconds] = Field(min_length=1)
    scores: list[Finite] = Field(min_length=1)
    diverged: int | None = None


class Synchronisation(Subject):
    """The choices, measured on one table; beside what every subject has:

    Attributes:
        learning_rate: of every training.
        ranks: processes of one thread each, which were also the shards.
        cores: that they could use.
        choices: in the order asked for.
        group_size: ranks of a group; None where there were none.
        straggler: how many times as long a rank computed where it was held up; 1: never.
        steps: by delay, then choice.
        trainings: by seed, delay and choice. With delays, of the first seed alone.
    """

    learning_rate: Finite
    ranks: int = Field(ge=2)
    cores: int = Field(ge=1)
    choices: list[Choice] = Field(min_length=1)
    group_size: int | None
    straggler: Finite = Field(ge=1)
    steps: list[Steps] = Field(min_length=1)
    trainings: list[Training] = Field(min_length=1)

    @property
    def delays(self) -> list[Delay]:
        """Those that were measured."""
        return list(dict.fromkeys(steps.delay for steps in self.steps))

    def timed(self, choice: Choice, delay: Delay = "none") -> Steps | None:
        """The steps of a choice; None: they were not measured."""
        return next((s for s in self.steps if (s.choice, s.delay) == (choice, delay)), None)

    def trained(self, choice: Choice, delay: Delay = "none") -> list[Training]:
        """The trainings of a choice, by seed."""
        return [t for t in self.trainings if (t.choice, t.delay) == (choice, delay)]
