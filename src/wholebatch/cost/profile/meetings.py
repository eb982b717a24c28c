"""Waiting for others told apart from exchanging with them, without comparing the clocks of different machines.

Whoever comes last to a meeting waits for nobody: what it stays there is the exchange itself. So the shortest stay of
any rank is taken for the exchange, and what another rank stayed longer, it waited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wholebatch.cost.profile.samples import Samples


@dataclass
class Shares:
    """What all meetings come to, per rank.

    Attributes:
        wait, exchange: ``(ranks, steps, layers)``, seconds.
        met: ``(ranks, layers)``: whether the rank met others there at all.
        wait_of_all, exchange_of_all: ``(ranks, steps)``; also of meetings at no known layer.
        caused: ``(ranks, steps)``: what the others waited together where this rank came last.
        last: ``(ranks,)``: how often it did.
        meetings: ``(ranks,)``: how many meetings a rank had in all steps.
    """

    wait: np.ndarray
    exchange: np.ndarray
    met: np.ndarray
    wait_of_all: np.ndarray
    exchange_of_all: np.ndarray
    caused: np.ndarray
    last: np.ndarray
    meetings: np.ndarray


def have_met(samples: Sequence[Samples]) -> bool:
    """Whether there were any meetings."""
    return any(stays for one in samples for stays in one.probed.stays)


def split(samples: Sequence[Samples], layers: int) -> Shares:
    """Wait and exchange of each rank in each meeting, summed by step and layer. ``samples`` are in rank order.

    Raises:
        ValueError: a rank that took part was not recorded, or the ranks' meetings do not pair.
    """
    ranks, steps = len(samples), len(samples[0].probed.seconds)
    shares = Shares(
        np.zeros((ranks, steps, layers)),
        np.zeros((ranks, steps, layers)),
        np.zeros((ranks, layers), dtype=bool),
        *(np.zeros((ranks, steps)) for _ in range(3)),
        *(np.zeros(ranks, dtype=int) for _ in range(2)),
    )
    groups = sorted({tuple(group) for one in samples for group in one.probed.groups})
    for members in groups:
        if max(members) >= ranks:
            raise ValueError(f"rank {max(members)} met the others and was not recorded")
        for step in range(steps):
            _split_step(shares, samples, members, step)
    return shares


def _split_step(shares: Shares, samples: Sequence[Samples], members: tuple[int, ...], step: int) -> None:
    stays = [_stays_of(samples[rank], members, step) for rank in members]
    counts = [len(stay) for stay in stays]
    if len(set(counts)) > 1:
        raise ValueError(f"ranks {', '.join(map(str, members))} had {', '.join(map(str, counts))} meetings in one step")
    if not counts[0]:
        return
    seconds = np.array([[stay for _, stay in each] for each in stays])  # (members, meetings)
    exchange = seconds.min(axis=0)
    wait = seconds - exchange
    first = seconds.argmin(axis=0)
    for place, rank in enumerate(members):
        came_last = first == place
        shares.last[rank] += came_last.sum()
        shares.meetings[rank] += counts[0]
        shares.caused[rank, step] += wait[:, came_last].sum()
        shares.wait_of_all[rank, step] += wait[place].sum()
        shares.exchange_of_all[rank, step] += exchange.sum()
        for meeting, (layer, _) in enumerate(stays[place]):
            if layer >= 0:
                shares.met[rank, layer] = True
                shares.wait[rank, step, layer] += wait[place, meeting]
                shares.exchange[rank, step, layer] += exchange[meeting]


def _stays_of(samples: Samples, members: tuple[int, ...], step: int) -> list[tuple[int, float]]:
    groups = [tuple(group) for group in samples.probed.groups]
    return [(layer, seconds) for group, layer, seconds in samples.probed.stays[step] if groups[group] == members]
