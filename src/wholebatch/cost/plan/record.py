"""What a recording keeps of the plan: what went in, what comes out for each number of workers, and the check."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Synchronisation = Literal["all", "groups", "none"]
"""Whose moments batch norm takes: those of all workers, of each group of workers, or each worker's own. Gradients are
added over all workers in each case."""
Exchange = Literal["allreduce", "allgather", "shared memory"]
"""How vectors get from each worker to all, see :mod:`wholebatch.cost.plan.exchange`."""
Method = Literal["simulated", "closed form"]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Layer(_Plain):
    """A layer as one worker takes it: forward it computes and then meets, backward it meets and then computes.

    Attributes:
        name: as it is called in the model.
        forward_us: microseconds from the meeting before to its own, forward, on one worker.
        backward_us: microseconds from its own meeting to the next one, backward, on one worker.
        forward_spread: coefficient of variation (standard deviation over mean) of ``forward_us`` from step to step.
        backward_spread: that of ``backward_us``.
        forward_bytes: what a worker hands over at the meeting forward; 0: there is no meeting.
        backward_bytes: the same backward.
    """

    name: str
    forward_us: float = Field(ge=0)
    backward_us: float = Field(ge=0)
    forward_spread: float = Field(default=0, ge=0)
    backward_spread: float = Field(default=0, ge=0)
    forward_bytes: int = Field(default=0, ge=0)
    backward_bytes: int = Field(default=0, ge=0)


class Workload(_Plain):
    """A step as one worker takes it, without the others.

    Attributes:
        source: where it was measured, in words.
        assumed: what the source does not tell and was assumed, in sentences.
        rows: of the mini-batch, that one worker computes.
        whole_rows: of the whole mini-batch when it was measured; ``rows`` times the workers there were.
        layers: in forward order.
        update_us: microseconds from the gradients of all workers to the next step's first layer.
        update_spread: coefficient of variation of ``update_us``.
        gradient_bytes: of all gradients together.
    """

    source: str
    assumed: list[str] = Field(default_factory=list)
    rows: int = Field(ge=1)
    whole_rows: int = Field(ge=1)
    layers: list[Layer] = Field(min_length=1)
    update_us: float = Field(default=0, ge=0)
    update_spread: float = Field(default=0, ge=0)
    gradient_bytes: int = Field(default=0, ge=0)


class Link(_Plain):
    """Hockney's model: a message of n bytes takes ``latency_us + n / megabytes_per_second`` microseconds.

    Attributes:
        latency_us: microseconds that a message takes whatever its size.
        megabytes_per_second: 10^6 bytes per second, which is bytes per microsecond.
        source: ``given`` by the person, ``measured`` between two local ranks, or one of each.
    """

    latency_us: float = Field(ge=0)
    megabytes_per_second: float = Field(gt=0)
    source: Literal["given", "measured", "partly given"]


class Network(_Plain):
    """What messages take.

    Attributes:
        meetings: of batch norms.
        gradients: of the sum of gradients.
        exchange: how the vectors of a batch norm get to all; gradients are always summed by an allreduce.
    """

    meetings: Link
    gradients: Link
    exchange: Exchange


class Slow(_Plain):
    """A worker that computes slower than the others.

    Attributes:
        worker: which, from 0.
        by: its compute takes so many times that of the others.
    """

    model_config = ConfigDict(frozen=True)

    worker: int = Field(ge=0)
    by: float = Field(ge=1)


class Forecast(_Plain):
    """A step with so many workers. Times are microseconds, means over workers and steps where nothing else is said.

    Attributes:
        workers: how many.
        synchronisation: whose moments batch norm takes.
        group: workers that take their moments together: ``workers`` for all, 1 for none.
        method: how it was found.
        steps: that were simulated; 0 in closed form.
        mean_us: a step, from one sum of gradients to the next.
        error_us: standard error of ``mean_us`` by simulation; 0 in closed form.
        p50_us: median of a step.
        p95_us: 19 of 20 steps take less.
        compute_us: what a worker computes of it.
        wait_us: what a worker waits for slower ones.
        exchange_us: messages of batch norms and gradients.
        gradients_us: the part of ``exchange_us`` that is the gradients'.
    """

    workers: int = Field(ge=1)
    synchronisation: Synchronisation
    group: int = Field(ge=1)
    method: Method
    steps: int = Field(ge=0)
    mean_us: float = Field(ge=0)
    error_us: float = Field(ge=0)
    p50_us: float = Field(ge=0)
    p95_us: float = Field(ge=0)
    compute_us: float = Field(ge=0)
    wait_us: float = Field(ge=0)
    exchange_us: float = Field(ge=0)
    gradients_us: float = Field(ge=0)

    @property
    def wait_share(self) -> float:
        """``wait_us`` as a share of the step."""
        return self.wait_us / self.mean_us if self.mean_us else 0.0


class _Compared(_Plain):
    """A prediction and what was measured, of steps of real ranks on this host. Microseconds.

    Attributes:
        workers: ranks, of one thread each.
        synchronisation: ``all``: a meeting after each stretch; ``none``: one at the end of the step.
        steps: that were measured.
        predicted_us: the median step that the model predicts.
        median_us: of the measured steps.
        p20_us, p80_us: a fifth of the measured steps took less, a fifth more.
        error_percent: ``100 * (predicted_us / median_us - 1)``.
    """

    workers: int = Field(ge=2)
    synchronisation: Synchronisation
    steps: int = Field(ge=1)
    predicted_us: float = Field(ge=0)
    median_us: float = Field(gt=0)
    p20_us: float = Field(gt=0)
    p80_us: float = Field(gt=0)
    error_percent: float


class Checked(_Compared):
    """Of ranks that compute; predicted from a rank that computes alone.

    Attributes:
        alone_us: the median of one rank's compute in a step while the other ranks stood still, in the same rounds.
        others: threads of other processes that wanted a core just before, a mean.
        crowding: the prediction's factor on compute, see :func:`wholebatch.cost.plan.others.crowd`: ranks over cores
            where nobody else wants them and there are more ranks than cores.
        predicted_idle_us: wait and exchange of a step as predicted, a mean over steps and ranks.
        measured_idle_us: the same as measured.
        compute_us: the mean of a rank's compute in the measured steps.
        told_us: the median step that the model predicts when it is told what each rank computed in each stretch of
            each of these steps: the slowest rank's stretches and the exchanges. What it is off by is the exchanges'.
        told_error_percent: ``100 * (told_us / median_us - 1)``.
    """

    alone_us: float = Field(ge=0)
    others: float = Field(ge=0)
    crowding: float = Field(ge=1)
    predicted_idle_us: float = Field(ge=0)
    measured_idle_us: float = Field(ge=0)
    compute_us: float = Field(ge=0)
    told_us: float = Field(ge=0)
    told_error_percent: float


class Slept(_Compared):
    """Of ranks that sleep lognormal times in place of computing; predicted in closed form."""


class Check(_Plain):
    """The model held against real ranks of this host.

    Attributes:
        hidden: neurons of each layer of the net that was run; batch norm and ReLU follow each.
        rows: of each rank's mini-batch.
        cores: that the ranks shared.
        network: of this host, measured between two ranks.
        lines: one for each number of ranks and synchronisation.
        slept: the same for ranks that sleep, see :mod:`wholebatch.cost.plan.slept`.
    """

    hidden: list[int]
    rows: int = Field(ge=1)
    cores: int = Field(ge=1)
    network: Network
    lines: list[Checked] = Field(min_length=1)
    slept: list[Slept] = Field(default_factory=list)


class Plan(_Plain):
    """Predictions for more workers.

    Attributes:
        workload: one worker's step, what everything is predicted from.
        network: between the workers that are planned for.
        jitter: coefficient of variation of the compute between two meetings, where the person gave one; None: the
            workload's own spreads.
        slow: a slower worker; None: all are alike.
        scaling: ``weak``: each worker keeps its rows and the mini-batch grows; ``strong``: the mini-batch is divided.
        group_size: workers of a group.
        seed: of the simulation.
        forecasts: by workers, then synchronisation.
        gathering_us: exchange of a step at the most workers if ranks gathered all parts, in place of ``allreduce``.
        check: None: there was none.
    """

    workload: Workload
    network: Network
    jitter: float | None = Field(default=None, ge=0)
    slow: Slow | None = None
    scaling: Literal["weak", "strong"] = "weak"
    group_size: int = Field(ge=1)
    seed: int = 0
    forecasts: list[Forecast] = Field(min_length=1)
    gathering_us: float = Field(default=0, ge=0)
    check: Check | None = None

    def of(self, synchronisation: Synchronisation) -> list[Forecast]:
        """The forecasts of one synchronisation, by workers."""
        return [one for one in self.forecasts if one.synchronisation == synchronisation]
