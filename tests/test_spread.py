"""How a mini-batch is spread: what may be chosen, which rows a shard owns, what ranks tell each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ranks import run_ranks
from wholebatch import FeedForward
from wholebatch.feedforward.agreement import do_together, take_net
from wholebatch.feedforward.data import batch_offsets, shuffled
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.peers import Peers, add_in_order, find_peers
from wholebatch.feedforward.settings import Architecture
from wholebatch.feedforward.sharding import Deal, shard_bounds, shard_counts
from wholebatch.feedforward.spread import Spread
from wholebatch.sharing import Meeting

NET = Architecture(3, (4,), 2)
MEETING = Meeting("layers.1", "forward")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"sync": "some"}, "sync is 'some'; choose one of 'all', 'group', 'none', 'late'"),
        ({"shards": 0}, "shards is 0; it must be a whole number of at least 1"),
        ({"shards": True}, "shards is True"),
        ({"sync": "group", "group_size": -1}, "group_size is -1"),
        ({"group_size": 2}, "group_size is 2, but sync is 'all'"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(chosen: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Spread(**chosen)


def test_shards_are_a_multiple_of_the_ranks():
    assert Spread().shards_for(3) == 3
    assert Spread(6).shards_for(3) == 6
    with pytest.raises(
        ValueError, match="4 shards cannot be dealt to 3 ranks in equal numbers; choose a multiple of 3"
    ):
        Spread(4).shards_for(3)


@given(rows=st.integers(0, 200), each=st.integers(1, 4), ranks=st.integers(1, 5))
def test_shards_are_the_same_rows_whoever_cuts_them(rows: int, each: int, ranks: int):
    """Runs of all rows, as equal as can be; a rank that cuts the rows of its own shards cuts at the same places."""
    bounds = shard_bounds(rows, each * ranks)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, rows)
    assert sizes.max() - sizes.min() <= 1
    for rank in range(ranks):
        own = bounds[rank * each : (rank + 1) * each + 1]
        np.testing.assert_array_equal(shard_bounds(int(own[-1] - own[0]), each) + own[0], own)


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 2),
    batch_size=st.integers(2, 50),
)
def test_every_row_is_taken_once_and_shards_evenly(sizes: list[int], batch_size: int):
    """Mini-batches are as long as without shards, and no shard is ever far ahead of its share, or behind it."""
    offsets = batch_offsets(sum(sizes), batch_size, NET)
    counts = shard_counts(sizes, offsets)
    np.testing.assert_array_equal(counts.sum(0), sizes)
    np.testing.assert_array_equal(counts.sum(1), np.diff(offsets))
    # When all rows up to the time t are taken, and some of those at t, those are n t of a shard's n within 1/2, and so
    # N t of all N within shards/2. What n t is more than n/N of all rows taken is then n/N of that.
    sizes_, taken = np.array(sizes), offsets[1:, None]
    bound = 0.5 + sizes_ / sum(sizes) * len(sizes) / 2
    assert (np.abs(counts.cumsum(0) - taken * sizes_ / sum(sizes)) <= bound + 1e-9).all()


@given(
    sizes=st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(lambda sizes: sum(sizes) >= 2),
    batch_size=st.integers(2, 30),
    seed=st.integers(0, 5),
)
def test_ranks_take_what_one_process_takes(sizes: list[int], batch_size: int, seed: int):
    """The rows of each shard in each mini-batch do not depend on who owns the shard."""
    offsets = batch_offsets(sum(sizes), batch_size, NET)
    begins = np.append(0, np.cumsum(sizes))

    def taken(own: range) -> dict[tuple[int, int], list[int]]:
        deal = Deal.of(sizes, own, offsets)
        order = deal.order(seed, 3) + begins[own.start]
        found = {}
        for step in range(deal.steps):
            rows = order[deal.offsets[step] : deal.offsets[step + 1]]
            ends = deal.counts[step, own.start : own.stop].cumsum()
            for shard, of_shard in zip(own, np.split(rows, ends[:-1]), strict=True):
                assert ((begins[shard] <= of_shard) & (of_shard < begins[shard + 1])).all()
                found[step, shard] = of_shard.tolist()
        assert sorted(order) == list(range(begins[own.start], begins[own.stop]))
        return found

    whole = taken(range(4))
    assert whole == taken(range(2)) | taken(range(2, 4))
    assert whole == taken(range(1)) | taken(range(1, 2)) | taken(range(2, 3)) | taken(range(3, 4))


def test_one_shard_has_the_order_that_all_rows_have():
    offsets = batch_offsets(50, 8, NET)
    deal = Deal.of((50,), range(1), offsets)
    np.testing.assert_array_equal(deal.order(7, 2), shuffled(50, 7, 2))
    np.testing.assert_array_equal(deal.order(7, 2, shuffle=False), np.arange(50))
    np.testing.assert_array_equal(deal.offsets, offsets)
    assert deal.most_rows == 8


def test_shards_of_equal_size_are_shuffled_differently():
    orders = [shuffled(30, 1, 2, shard).tolist() for shard in range(3)]
    assert len({tuple(order) for order in orders}) == 3


def test_the_masks_of_a_shard_are_rows_of_the_whole_masks():
    whole = dropout_mask(20, 7, 1, 5, 9, 0.4)
    np.testing.assert_array_equal(dropout_mask(6, 7, 1, 5, 9, 0.4, first=11), whole[11:17])


def test_a_process_alone_holds_all_shards():
    peers = Peers(Spread(3, "group"))
    values = np.arange(6.0).reshape(3, 2)
    assert (peers.rank, peers.ranks, peers.own, peers.near, peers.waits) == (0, 1, range(3), range(3), False)
    np.testing.assert_array_equal(peers.gather(values, MEETING), values)
    np.testing.assert_array_equal(peers.gather_near(values, MEETING), values)
    assert peers.tell(b"it", "test") == [b"it"]
    assert peers.take(b"it", "test") == b"it"


def test_a_sum_is_taken_in_the_order_of_the_shards_and_in_their_dtype():
    parts = np.array([[1.0], [2.0**-24], [2.0**-24]], np.float32)
    assert add_in_order(parts)[0] == 1.0  # each half a unit rounds to even; both together would not
    assert add_in_order(parts[::-1])[0] == np.float32(1 + 2.0**-23)


def view(rank: int) -> dict[str, Any]:
    """What the rank of four sees, for each choice of sync."""
    found: dict[str, Any] = {}
    for name, spread in (
        ("all", Spread(8)),
        ("none", Spread(8, "none")),
        ("late", Spread(8, "late")),
        ("pairs", Spread(8, "group", 2)),
        ("host", Spread(8, "group")),
        ("alone", Spread(8, "group", 1)),
    ):
        peers = Peers(spread, "world")
        own = np.array([[float(shard), 0.1 * shard] for shard in peers.own])
        near = peers.gather_near(own, MEETING)[:, 0].astype(int).tolist()
        gathered = peers.gather(own, MEETING)
        total = add_in_order(gathered)
        found[name] = (peers.own, peers.near, near, peers.waits, gathered.tolist(), total.tolist())
    part = dist.new_group([1, 3], use_local_synchronization=True) if rank in (1, 3) else None
    if part is not None:
        peers = Peers(Spread(sync="group", group_size=1), part)
        found["part"] = (peers.rank, peers.ranks, peers.take(b"%d" % rank, "test"))
    world = Peers(Spread(), "world")
    found["told"] = world.tell(b"x" * rank, "test")
    found["exchanged"] = world.exchange([b"%d to %d" % (rank, other) for other in range(4)], "test")
    for spread in (Spread(6), Spread(sync="group", group_size=3)):
        with pytest.raises(ValueError, match="choose") as error:
            Peers(spread, "world")
        found[str(spread)] = str(error.value)
    return found


def test_ranks_see_their_shards_and_those_nearby():
    views = [outcome.value for outcome in run_ranks(view, 4)]
    everything = [[float(shard), 0.1 * shard] for shard in range(8)]
    total = [28.0, float(add_in_order(np.array(everything))[1])]
    for rank, found in enumerate(views):
        own, pair = range(2 * rank, 2 * rank + 2), range(rank // 2 * 4, rank // 2 * 4 + 4)
        near = {"all": range(8), "none": own, "late": own, "pairs": pair, "host": range(8), "alone": own}
        for name, shards in near.items():
            assert found[name] == (own, shards, list(shards), len(shards) > 2, everything, total), name
        assert found["told"] == [b"", b"x", b"xx", b"xxx"]
        assert found["exchanged"] == [b"%d to %d" % (other, rank) for other in range(4)]
    assert [views[rank]["part"] for rank in (1, 3)] == [(0, 2, b"1"), (1, 2, b"1")]
    assert "6 shards cannot be dealt to 4 ranks" in views[2][str(Spread(6))]
    assert "4 ranks cannot be cut into groups of 3" in views[2][str(Spread(sync="group", group_size=3))]


def group_without_spread(rank: int) -> str:
    with pytest.raises(ValueError, match="without a spread") as error:
        find_peers(None, dist.GroupMember.WORLD)
    return str(error.value)


def test_a_group_without_a_spread_is_refused():
    assert find_peers(None, "world") is None
    with pytest.raises(ValueError, match="'wrold'"):
        find_peers(None, "wrold")
    assert "pass spread=Spread()" in run_ranks(group_without_spread, 1)[0].value


def test_a_spread_over_no_process_group_is_refused():
    with pytest.raises(ValueError, match=r"call torch\.distributed\.init_process_group"):
        Peers(Spread(), "world")


ERRORS: dict[str, tuple[list[Exception | None], type[Exception], str]] = {
    "one rank": ([None, ValueError("no"), None], ValueError, "on rank 1 of 3: no"),
    "two ranks": ([None, ValueError("no"), TypeError("neither")], ValueError, "on rank 1 of 3: no"),
    "a type": ([TypeError("no"), None, None], TypeError, "on rank 0 of 3: no"),
    "the system": ([None, None, OSError("no disk")], ValueError, "on rank 2 of 3: OSError: no disk"),
    "all alike": ([KeyError("no")] * 3, KeyError, "'no'"),
    "nobody": ([None] * 3, RuntimeError, "done"),
}


def do_each(rank: int) -> dict[str, tuple[str, str]]:
    peers, found = Peers(Spread(), "world"), {}

    def do(error: Exception | None) -> str:
        if error is not None:
            raise error
        return "done"

    for name, (errors, _, _) in ERRORS.items():
        error = errors[rank]
        try:
            found[name] = ("RuntimeError", do_together(peers, lambda error=error: do(error)))  # type: ignore[misc]
        except Exception as raised:
            found[name] = (type(raised).__name__, str(raised))
    return found


def test_what_fails_on_one_rank_fails_on_all():
    for outcome in run_ranks(do_each, 3):
        assert outcome.value == {name: (kind.__name__, words) for name, (_, kind, words) in ERRORS.items()}


def test_without_peers_an_error_is_what_it_is():
    with pytest.raises(KeyError):
        do_together(None, lambda: {}["no"])


def take_first(rank: int) -> list[float]:
    model = FeedForward(3, (4,), 2, dtype=torch.float64)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(rank + 2)
    take_net(Peers(Spread(), "world"), model)
    return [float(value) for tensor in model.state_dict().values() for value in tensor.reshape(-1).unique()]


def test_the_net_of_rank_0_is_everyones():
    for outcome in run_ranks(take_first, 2):
        assert outcome.value == [2.0] * len(FeedForward(3, (4,), 2).state_dict())
