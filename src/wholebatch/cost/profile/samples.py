"""One rank's raw measurements, step by step, in a form that can be told to the others."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.cost.profile.probes import Stay, Visit


class Trace(BaseModel):
    """Steps with probes; the outer lists go over steps, the inner over layers.

    Attributes:
        seconds: of each step.
        forward, backward: of each layer; backward None where no derivative passed.
        stays: ``(place in groups, place of the layer or -1, seconds)`` of each meeting in its order.
        groups: the ranks that met.
    """

    model_config = ConfigDict(extra="forbid")

    seconds: list[float] = Field(default_factory=list)
    forward: list[list[float]] = Field(default_factory=list)
    backward: list[list[float | None]] = Field(default_factory=list)
    stays: list[list[tuple[int, int, float]]] = Field(default_factory=list)
    groups: list[list[int]] = Field(default_factory=list)

    def add(self, seconds: float, visits: Sequence[Visit], stays: Sequence[Stay]) -> None:
        """One more step."""
        self.seconds.append(seconds)
        self.forward.append([visit.forward for visit in visits])
        self.backward.append([visit.backward for visit in visits])
        kept = []
        for stay in stays:
            group = list(stay.ranks)
            if group not in self.groups:
                self.groups.append(group)
            kept.append((self.groups.index(group), stay.layer, stay.seconds))
        self.stays.append(kept)


class Samples(BaseModel):
    """All that one rank measured.

    Attributes:
        host: name of its machine.
        burst: so many steps of a kind were made on end in each round.
        plain: seconds of each step without probes.
        probed: the steps with them.
        changed: seconds of each step of the changed model without probes.
        changed_probed: and with them.
    """

    model_config = ConfigDict(extra="forbid")

    host: str = Field(default_factory=socket.gethostname)
    burst: int = 1
    plain: list[float] = Field(default_factory=list)
    probed: Trace = Field(default_factory=Trace)
    changed: list[float] = Field(default_factory=list)
    changed_probed: Trace = Field(default_factory=Trace)

    def add(
        self,
        seconds: float,
        visits: Sequence[Visit] | None = None,
        stays: Sequence[Stay] | None = None,
        changed: bool = False,
        probed: bool = False,
    ) -> None:
        """One more step."""
        if probed:
            (self.changed_probed if changed else self.probed).add(seconds, visits or (), stays or ())
        else:
            (self.changed if changed else self.plain).append(seconds)
