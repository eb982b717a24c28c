"""The native engine over ranks where something goes wrong: every rank is told, and the net is as before the epoch."""

from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest

from ranks import run_ranks
from small_problem import copy_of, same
from spread_native import RATE, Case, train
from wholebatch import Optimizer
from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.recording import Doing, RecordingEngine, Stage
from wholebatch.feedforward.spread import Spread
from wholebatch.kernels import native_available
from wholebatch.sharing import Meeting, MeetingError, set_timeout
from wholebatch.sharing.header import Header
from wholebatch.sharing.watch import watching

pytestmark = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")

TRANSPORTS = ["shared_memory", "gloo"]
LONG = Case(rows=4000, batch_size=8, spread=Spread(shards=2))  # more than one call of progress


def meet(engine: RecordingEngine) -> None:
    """The ranks still stand at the same place."""
    assert engine.peers is not None
    assert engine.peers.gather(np.ones((len(engine.peers.own), 1)), Meeting("test", "end")).sum() == engine.peers.shards


def fail(rank: int, how: str) -> tuple[str, bool]:
    engine, data, deal = LONG.begin("world", n_threads=2)
    before = copy_of(engine.model)

    def stumble(done: int, loss: float) -> None:
        if rank == 1 and how == "raise":
            raise RuntimeError("stumbled")
        if rank == 1 and how == "interrupt":
            signal.raise_signal(signal.SIGINT)
        if rank == 1 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and how == "hang":
            signal.sigtimedwait([signal.SIGUSR1], 3)

    set_timeout(1 if how == "hang" else None)
    step = 0
    try:
        while True:
            order = deal.order(0, step)
            engine.train_epoch(data, order, deal.offsets, np.full(deal.steps, RATE), stumble, counts=deal.counts)
            before, step = copy_of(engine.model), engine.step
    except MeetingError as error:
        return str(error), same(before, copy_of(engine.model)) and engine.step == step


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "rank 1 raised RuntimeError: stumbled"),
        ("interrupt", "rank 1 raised KeyboardInterrupt"),
        ("kill", "is gone"),
        ("hang", "rank 1 did not come within"),
    ],
)
def test_the_others_are_told_of_a_rank_that_fails(how: str, said: str, transport: str):
    first, second = run_ranks(fail, 2, how, environment={"WHOLEBATCH_TRANSPORT": transport})
    text, kept = first.value
    assert said in text
    assert text.startswith("training over ranks stopped at layers."), "the meeting is not named"
    assert "Join" not in text
    assert kept, "the net is not as before the epoch"
    if how in ("raise", "interrupt"):
        assert second.error.startswith("RuntimeError: stumbled" if how == "raise" else "KeyboardInterrupt")


def overflow(rank: int, sync: str) -> tuple[list[str], bool]:
    """Only the last rank has a row that is not finite; twice, for the ranks stay together."""
    group_size = 1 if sync == "group" else None
    case = Case(optimizer=Optimizer("sgd", RATE), spread=Spread(shards=4, sync=sync, group_size=group_size))
    engine, data, deal = case.begin("world", n_threads=2)
    if rank == 1:
        data.x[7] = np.inf
    before, said = copy_of(engine.model), []
    for epoch in range(2):
        order = deal.order(0, epoch)
        with pytest.raises(NonFiniteLossError) as error:
            engine.train_epoch(data, order, deal.offsets, np.full(deal.steps, RATE), counts=deal.counts)
        said.append(str(error.value))
    meet(engine)
    return said, same(before, copy_of(engine.model)) and engine.step == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sync", ["all", "group", "late"])
def test_a_loss_that_is_not_finite_is_so_on_every_rank(sync: str, transport: str):
    outcomes = run_ranks(overflow, 2, sync, environment={"WHOLEBATCH_TRANSPORT": transport})
    (said, kept), other = (outcome.value for outcome in outcomes)
    assert kept
    assert other == (said, kept)
    assert all("not finite in step" in text and text.count("appeared in the input") == 1 for text in said)


def refuse(rank: int, what: str) -> str:
    if what == "memory" and rank == 0:

        def no_room(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        os.posix_fallocate = no_room
    with pytest.raises(ValueError, match="ranks") as error:
        train("world", Case(spread=Spread(shards=2)))
    return str(error.value)


def test_memory_that_cannot_be_shared_is_said_on_every_rank():
    said = {outcome.value for outcome in run_ranks(refuse, 2, "memory")}
    assert len(said) == 1
    assert "cannot share" in said.pop()


def test_ranks_with_other_kernels_are_refused():
    environment = [{"WHOLEBATCH_INSTRUCTION_SET": name} for name in ("portable", "avx2")]
    outcomes = run_ranks(refuse, 2, "kernels", environment=environment)
    if any("this processor has" in outcome.error for outcome in outcomes):
        pytest.skip("this processor has no avx2")
    for outcome in outcomes:
        assert "portable on rank 0, avx2 on rank 1" in outcome.value


def look(rank: int) -> tuple[bool, list[set[tuple[Doing, Stage]]], float, float, float, set[str]]:
    """Trains twice, the second time with marks and with a watcher; says whether that changed a bit, and what it saw."""
    ends, seen, marks = [], set[str](), []
    for recorded in (False, True):
        engine, data, deal = Case().begin("world", n_threads=2)
        order, rates = deal.order(0, 0), np.full(deal.steps, RATE)
        with watching(lambda ranks, header, seconds: seen.add(getattr(Header.unpack(header), "layer", ""))):
            if recorded:
                _, marks = engine.run_steps(data, order, deal.offsets, rates, record=True, counts=deal.counts)
        if not recorded:
            engine.train_epoch(data, order, deal.offsets, rates, counts=deal.counts)
        ends.append(copy_of(engine.model))
    found = [
        {(Doing(doing), Stage(stage)) for doing, stage in zip(lane.doing, lane.stage, strict=True)} for lane in marks
    ]
    network = next(iter(engine._networks.values()))
    return same(*ends), found, network.exchanged(), network.awaited(), network.lasted(), seen


def test_what_an_exchange_takes_is_told():
    for outcome in run_ranks(look, 2):
        unchanged, (caller, helper), exchanged, awaited, lasted, seen = outcome.value
        assert unchanged, "marks or watchers changed a number"
        assert {
            (doing, stage)
            for doing in (Doing.EXCHANGE, Doing.RANKS)
            for stage in (Stage.FORWARD, Stage.BACKWARD, Stage.EXCHANGE)
        } <= caller
        assert not any(doing in (Doing.EXCHANGE, Doing.RANKS) for doing, _ in helper)
        assert exchanged > 0
        assert awaited > 0
        assert exchanged + awaited < lasted
        assert {"layers.0", "layers.3"} <= seen


def count_open(rank: int) -> tuple[int, int]:
    """Descriptors after the first engine of a group, and after five more."""
    counts = []
    for _ in range(6):
        train("world", Case(spread=Spread(shards=2), rows=60))
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[0], counts[-1]


def test_engines_that_are_gone_leave_no_descriptor():
    for outcome in run_ranks(count_open, 2):
        first, last = outcome.value
        assert last == first


def test_a_process_alone_exchanges_nothing():
    engine, data, deal = Case().begin(None)
    engine.train_epoch(data, deal.order(0, 0), deal.offsets, np.full(deal.steps, RATE), counts=deal.counts)
    network = next(iter(engine._networks.values()))
    assert network.awaited() == 0
