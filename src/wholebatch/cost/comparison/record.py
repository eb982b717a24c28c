"""What a recording keeps of the comparison: every timed round and every score, and what was asked."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.cost.subject import Subject
from wholebatch.cost.timing import Timing
from wholebatch.cost.values import Finite, Seconds

NormName = Literal["batch", "batch-after", "layer", "rms", "none"]
EngineName = Literal["wholebatch", "torch"]
Answer = Literal["free", "less", "holds", "more", "unclear"]


class Contender(BaseModel):
    """A norm on an engine.

    Attributes:
        norm: its name here: ``batch`` stands before the activation, ``batch-after`` after it.
        engine: ``wholebatch``, or ``torch``: torch's own modules, autograd and optimizer, operation by operation.
        threads: with which it was faster in a short trial, and was measured.
        how: the variant that was measured: the instruction set, or which of torch's implementations of the optimizer.
        parameters: of the net.
        learning_rate: with which it was trained.
        timing: of a step.
    """

    model_config = ConfigDict(extra="forbid")

    norm: NormName
    engine: EngineName
    threads: int
    how: str
    parameters: int
    learning_rate: Finite
    timing: Timing


class Run(BaseModel):
    """One training from one seed; ``steps[i]`` steps took ``seconds[i]`` and scored ``scores[i]``.

    Attributes:
        norm, engine: of the contender.
        seed: of first weights and shuffling; the same for every contender.
        steps: at which the validation rows were scored; the first is 0, before any training.
        seconds: of training alone until then: evaluations are not counted.
        scores: accuracy, exact match or R2 of the validation rows; higher is better.
        diverged: the step until which a value was no longer finite, which ended the training; None where all went well.
        steps_to_target: the first of ``steps`` with a score of at least the target; None where none has it.
        seconds_to_target: the training time until then.
    """

    model_config = ConfigDict(extra="forbid")

    norm: NormName
    engine: EngineName
    seed: int
    steps: list[int] = Field(min_length=1)
    seconds: list[Seconds]
    scores: list[Finite]
    diverged: int | None = None
    steps_to_target: int | None = None
    seconds_to_target: Seconds | None = None

    @property
    def best(self) -> float:
        """The highest score it reached."""
        return max(self.scores)


class Trial(BaseModel):
    """A learning rate that was tried for a norm, on one engine.

    Attributes:
        norm: it was tried for.
        learning_rate: that was tried.
        best: mean over the seeds of the highest validation score; None where a training diverged.
        mean: mean over the seeds of all scores along the training, which tells equal bests apart.
        chosen: whether the norm was then trained and shown with it.
    """

    model_config = ConfigDict(extra="forbid")

    norm: NormName
    learning_rate: Finite
    best: Finite | None
    mean: Finite | None
    chosen: bool


class Claim(BaseModel):
    """ "3 to 5 times slower per step", checked for one norm on one engine.

    Attributes:
        norm: measured against none.
        engine: on which both ran, each with its own best number of threads.
        ratio: of the medians of the time per step, the norm's over none's.
        low, high: the 20th and the 80th percentile of the single rounds' ratios.
        answer: see :mod:`wholebatch.cost.comparison.claim`.
    """

    model_config = ConfigDict(extra="forbid")

    norm: NormName
    engine: EngineName
    ratio: Finite
    low: Finite
    high: Finite
    answer: Answer


class Target(BaseModel):
    """The score to reach.

    Attributes:
        score: at least this; None where no norm learned anything that a constant prediction does not know.
        given: whether it was asked for; else it is the best score of the weakest training that still counts as well
            trained.
        norm: of that weakest training; None for a given one.
        constant: the score of predicting the same for every row, learned from the training rows.
    """

    model_config = ConfigDict(extra="forbid")

    score: Finite | None
    given: bool
    norm: NormName | None
    constant: Finite


class Comparison(Subject):
    """Norms compared on one table; beside what every subject has:

    Attributes:
        evaluated_every: steps between two evaluations; an epoch's end is one, too.
        most_threads: the other number of threads, beside 1, that was tried.
        target: the score to reach.
        contenders: norms on engines, in the order of the table.
        runs: one for each contender and seed.
        trials: of learning rates; empty where one was used for all.
        trials_engine: on which they were made.
        claims: what became of "3 to 5 times slower".
    """

    evaluated_every: int
    most_threads: int
    target: Target
    contenders: list[Contender] = Field(min_length=1)
    runs: list[Run]
    trials: list[Trial]
    trials_engine: EngineName | None
    claims: list[Claim]

    def of(self, contender: Contender) -> list[Run]:
        """The trainings of a contender, by seed."""
        return [run for run in self.runs if (run.norm, run.engine) == (contender.norm, contender.engine)]

    @property
    def steps(self) -> int:
        """Steps of a whole training."""
        return self.epochs * self.steps_per_epoch
