"""What the timings say about the claims: ours against the peers, and norms against none on our engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.rounds import Contender, Timings
from benchmarks.shapes import Shape
from benchmarks.systems import PEERS

OURS = "wholebatch"
# Peers that are called once for many steps, as ours is; the bars were set against peers that are called for each.
LOOPS = ("jax-scan", "sklearn")


@dataclass(frozen=True)
class Bar:
    """What a ratio has to be: at least, or at most, ``value``."""

    value: float
    least: bool

    def holds(self, ratio: float) -> bool:
        """Whether this ratio is where it has to be."""
        return ratio >= self.value if self.least else ratio <= self.value

    def __str__(self) -> str:
        return f"{'at least' if self.least else 'at most'} {self.value:g}"


# What the project set itself, on two cores with AVX-512: the best peer's time over ours with batch norm, and batch
# norm's time over none's on our engine.
PEER_BARS = {"A": 8.0, "B": 2.8, "C": 1.7, "D": 1.4, "E": 1.25, "F": 2.5}
NORM_BARS = {"A": 1.15, "B": 1.05, "C": 1.05, "D": 1.06, "E": 1.05, "F": 1.12}


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians, with p20 and p80 of the single rounds' ratios."""

    what: str
    value: float
    low: float
    high: float
    bar: Bar | None = None


def of_shape(shape: Shape, timings: Timings, chosen: int | None = None) -> list[Ratio]:
    """All ratios of this shape that the timings can give; ``chosen``: the threads that our engine takes by itself."""
    return [*_against_peers(shape, timings), *_of_threads(shape, timings, chosen), *_of_norms(shape, timings)]


def _against_peers(shape: Shape, timings: Timings) -> Iterator[Ratio]:
    for norm in ("batch", "layer", "none"):
        ours = timings.best(shape=shape.name, system=OURS, norm=norm)
        found = (timings.best(shape=shape.name, system=name, norm=norm) for name in PEERS)
        peers = sorted((peer for peer in found if peer is not None), key=timings.median)
        if ours is None or not peers:
            continue
        bar = Bar(PEER_BARS[shape.name], True) if norm == "batch" and shape.name in PEER_BARS else None
        yield _against(timings, "best peer", norm, peers[0], ours, bar)
        by_step = [peer for peer in peers if peer.system not in LOOPS]
        if peers[0].system in LOOPS and by_step:
            yield _against(timings, "best peer called for each step", norm, by_step[0], ours, bar)
        for peer in peers:  # on every instruction set, ours has to be ahead of torch eager
            yield _against(timings, peer.system, norm, peer, ours, Bar(1.0, True) if peer.system == "torch" else None)
        single = timings.best(shape=shape.name, system=OURS, norm=norm, threads=1)
        there = [c for c in timings.of(shape=shape.name, norm=norm, threads=1) if c.system != OURS]
        if single is not None and there:
            best = min(there, key=timings.median)
            yield _against(timings, "best peer on one thread", norm, best, single, Bar(1.0, True))


def _of_threads(shape: Shape, timings: Timings, chosen: int | None) -> Iterator[Ratio]:
    for norm in ("batch", "none"):
        best = timings.best(shape=shape.name, system=OURS, norm=norm)
        own = timings.best(shape=shape.name, system=OURS, norm=norm, threads=chosen)
        if best is not None and own is not None:
            what = f"{OURS}, norm {norm}: its own choice of threads ({own.threads}) / the best ({best.threads})"
            yield Ratio(what, *timings.ratio(own, best))


def _of_norms(shape: Shape, timings: Timings) -> Iterator[Ratio]:
    threads = sorted({c.threads for c in timings.of(shape=shape.name, system=OURS)})
    for norm in ("batch", "layer"):
        bar = Bar(NORM_BARS[shape.name], False) if norm == "batch" and shape.name in NORM_BARS else None
        above = timings.best(shape=shape.name, system=OURS, norm=norm)
        below = timings.best(shape=shape.name, system=OURS, norm="none")
        if above is not None and below is not None:
            what = f"{OURS}, {norm} norm / none, best threads ({above.threads} / {below.threads})"
            yield Ratio(what, *timings.ratio(above, below), bar)
        for count in threads:
            above = timings.best(shape=shape.name, system=OURS, norm=norm, threads=count)
            below = timings.best(shape=shape.name, system=OURS, norm="none", threads=count)
            if above is not None and below is not None:
                what = f"{OURS}, {norm} norm / none, T={count} each"
                yield Ratio(what, *timings.ratio(above, below), bar)


def _against(timings: Timings, who: str, norm: str, peer: Contender, ours: Contender, bar: Bar | None) -> Ratio:
    name = "" if who == peer.system else f"{peer.system} "
    what = f"norm {norm}: {who} ({name}T={peer.threads}) / {OURS} (T={ours.threads})"
    return Ratio(what, *timings.ratio(peer, ours), bar)
