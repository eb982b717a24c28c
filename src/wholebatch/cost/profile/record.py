"""What a recording keeps of the profile: each normalisation layer's part of a person's own training step, by rank.

All times are seconds. What a step has several of (calls of a layer, meetings of ranks) is summed over the step first.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.cost.values import Finite, Seconds

Count = Annotated[int, Field(ge=0)]


class Spread(BaseModel):
    """Over the measured steps, in seconds, or in shares of a step where that is said.

    Attributes:
        median, low, high: the median, the 20th and the 80th percentile.
    """

    model_config = ConfigDict(extra="forbid")

    median: Seconds
    low: Seconds
    high: Seconds


class Estimate(BaseModel):
    """A relative difference, from pairs of bursts of steps that ran one shortly after the other.

    Attributes:
        median: of the pairs.
        low, high: a 95 % interval of that median, from the order of the pairs alone (no distribution is assumed).
        pairs: how many.
    """

    model_config = ConfigDict(extra="forbid")

    median: Finite
    low: Finite
    high: Finite
    pairs: Count


class Times(BaseModel):
    """One layer on one rank, per step.

    Attributes:
        forward: from the call of the layer to its return, waiting for other ranks included.
        backward: sum over the layer's own nodes in the graph of derivatives; None: no derivative passed through it.
        wait: in its meetings, how long this rank stood there because others were late; None: it has no meetings, or
            they cannot be told apart (see ``Profile.notes``).
        exchange: what those meetings took beyond that.
    """

    model_config = ConfigDict(extra="forbid")

    forward: Spread
    backward: Spread | None
    wait: Spread | None = None
    exchange: Spread | None = None


class Layer(BaseModel):
    """A normalisation layer.

    Attributes:
        name: in the model, as ``named_modules()`` has it; behind the model's name where there are several models.
        kind: its class.
        shape: of its input in its first call.
        dtype: of that input, such as ``float32``.
        calls: per step; a layer may be used several times, or again where activations are computed anew for backward.
        forward_bytes: least traffic per step: each input read once, each output written once.
        backward_bytes: least traffic per step: the output's gradient and the input read once, and the input's gradient
            written once where one was asked for; 0 where no derivative passed. Parameters and statistics are left out
            (one number per channel); an implementation that reads the input once more moves more.
        share: of the step with probes that forward and backward take together on rank 0 (shares of 1).
        converted: the same layer on rank 0 after converting; None: it stays what it is, or nothing was converted.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    kind: str
    shape: list[Count]
    dtype: str
    calls: Count
    forward_bytes: Count
    backward_bytes: Count
    share: Spread
    converted: Times | None = None


class Rank(BaseModel):
    """A process that took part.

    Attributes:
        rank: from 0.
        host: name of its machine.
        step: time of a step, without probes.
        layers: in the order of ``Profile.layers``.
        wait: per step, in all its batch-norm meetings: stood there because others were late; None as in ``Times``.
        exchange: what those meetings took beyond that.
        meetings: per step.
        last: in how many of all measured meetings it came last.
        caused: per step, the time that all other ranks together waited in meetings where this one came last.
    """

    model_config = ConfigDict(extra="forbid")

    rank: Count
    host: str
    step: Spread
    layers: list[Times]
    wait: Spread | None = None
    exchange: Spread | None = None
    meetings: Count = 0
    last: Count = 0
    caused: Spread | None = None


class Conversion(BaseModel):
    """What changing the batch norms changes, measured by doing it; of ranks, the slowest in each step.

    Attributes:
        way: ``convert``: torch.nn's became wholebatch's; ``revert``: wholebatch's became torch.nn's.
        layers: names of those that changed.
        before, after: time of a step, unchanged and changed.
        saving: share of the step that the change saves (negative: that it costs).
    """

    model_config = ConfigDict(extra="forbid")

    way: Literal["convert", "revert"]
    layers: list[str]
    before: Spread
    after: Spread
    saving: Estimate


class Profile(BaseModel):
    """A training step, and what its normalisation layers take of it.

    Attributes:
        target: what was measured: ``package.module:function``, or the class of the model.
        models: classes of the models that hold the layers; empty: no layer was found.
        device: ``cpu``, or the kind of accelerator.
        threads: of torch in each process.
        rounds: each has a burst of steps of each kind (with probes and without, converted and not), in changing order.
        burst: steps on end of each kind in a round.
        step: time of a step on rank 0, without probes.
        share: of the step with probes that all normalisation layers take together on rank 0 (shares of 1).
        overhead: of the probes: by how much a step with them is slower on rank 0; None: too few steps to tell.
        layers: in the order in which the model holds them.
        ranks: in rank order.
        slowest: the rank for which the others waited more than twice as long as for any other; None: there is none, or
            it is not known.
        conversion: None where there was nothing to convert or revert, or where that was not asked for.
        notes: what is special here, in sentences.
    """

    model_config = ConfigDict(extra="forbid")

    target: str
    models: list[str]
    device: str
    threads: Count
    rounds: Count
    burst: Count = 1
    step: Spread
    share: Spread
    overhead: Estimate | None
    layers: list[Layer]
    ranks: list[Rank]
    slowest: Count | None = None
    conversion: Conversion | None = None
    notes: list[str] = Field(default_factory=list)
