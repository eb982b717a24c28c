"""Bytes between real ranks: what arrives is what was sent; and who does not come is told, in place of a hang."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from ranks import run_ranks
from wholebatch.sharing import MeetingError, post, set_timeout
from wholebatch.sharing.messages import broadcast_bytes, exchange_bytes, gather_bytes, give_up, rank_in

RANKS = 3
LENGTHS = [0, 100, post.SHORT, post.SHORT + 1, 5000]


def content(source: int, target: int, size: int) -> bytes:
    return np.random.default_rng([source, target]).bytes(size)


def size_between(source: int, target: int) -> int:
    """Nothing, little, and more than a portion."""
    return [0, 5, 3000, 70_001][(source + 2 * target) % 4]


def send_all(rank: int) -> list[Any]:
    post.PORTION = 1000
    gathered = [gather_bytes(content(rank, 9, size * rank), "world", "numbers") for size in LENGTHS]
    told = [broadcast_bytes(content(rank, 8, size), "world", source=1) for size in LENGTHS]
    dealt = exchange_bytes([content(rank, to, size_between(rank, to)) for to in range(RANKS)], "world")
    return [rank_in("world"), gathered, told, [hashlib.sha256(piece).digest() for piece in dealt]]


def test_what_arrives_is_what_was_sent() -> None:
    outcomes = run_ranks(send_all, RANKS)
    for rank, outcome in enumerate(outcomes):
        place, gathered, told, dealt = outcome.value
        assert place == (rank, RANKS)
        assert gathered == [[content(source, 9, size * source) for source in range(RANKS)] for size in LENGTHS]
        assert told == [content(1, 8, size) for size in LENGTHS]
        expected = [content(source, rank, size_between(source, rank)) for source in range(RANKS)]
        assert dealt == [hashlib.sha256(piece).digest() for piece in expected]


def test_one_process_alone_gets_its_own() -> None:
    assert gather_bytes(bytearray(b"a"), None) == [b"a"]
    assert broadcast_bytes(memoryview(b"b"), None) == b"b"
    assert exchange_bytes([b"c"], None) == [b"c"]
    assert rank_in(None) == (0, 1)
    with pytest.raises(ValueError, match="2 contents for 1 ranks; there must be one for each"):
        exchange_bytes([b"c", b"d"], None)


def trouble(rank: int, kind: str) -> None:
    gather_bytes(b"x", "world", "the beginning")
    set_timeout(1.0 if kind == "stays away" else None)
    if rank == 1:
        match kind:
            case "another message":
                gather_bytes(b"y", "world", "other columns")
            case "another kind":
                exchange_bytes([b"y"] * RANKS, "world", "columns")
            case "stays away":
                time.sleep(3)
                return
            case "raises":
                raise KeyError("shape")
            case "gives up":
                give_up(OSError("no such disk"), "world")
                with pytest.raises(MeetingError, match="rank 1 raised OSError: no such disk"):
                    gather_bytes(b"y", "world", "columns")
                time.sleep(1)  # its process lives on
                return
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
    gather_bytes(b"y", "world", "columns")


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("another message", "the ranks disagree on the layer"),
        ("another kind", "the ranks disagree on the phase"),
        ("stays away", "rank 1 did not come within 1."),
        ("raises", "rank 1 raised KeyError: 'shape'"),
        ("gives up", "rank 1 raised OSError: no such disk"),
        ("dies", "rank 1: process "),
    ],
)
def test_a_rank_that_does_not_come_is_told(kind: str, cause: str) -> None:
    outcomes = run_ranks(trouble, RANKS, kind, timeout=30)
    for outcome in (outcomes[0], outcomes[2]):
        assert outcome.error.startswith("MeetingError: messages between ranks stopped at columns gather, meeting 2: ")
        assert cause in outcome.error
        assert "Join" not in outcome.error, "a remedy for batch norm"
        assert "1 " in outcome.error.split("To do")[0]


def test_the_first_message_finds_who_never_came() -> None:
    outcomes = run_ranks(never_comes, 2, timeout=30)
    assert "rank 1 did not come within 1." in outcomes[0].error


def never_comes(rank: int) -> None:
    set_timeout(1.0)
    if rank == 0:
        gather_bytes(b"", "world", "columns")
    time.sleep(3)
