"""What it takes to bring vectors from each worker to all, by the number of workers and of bytes.

A message of n bytes takes ``a + n * b`` (latency and inverse bandwidth); p workers; messages of different pairs do not
disturb each other, and adding numbers up is counted as nothing. With ``k = floor(log2 p)`` and ``r = k`` where p is a
power of two, else ``k + 2``, for the surplus workers hand in first and are told last::

    recursive doubling    r * (a + n b)
    halving-doubling      2 k a + 2 (q - 1)/q n b, q = 2^k, and 2 (a + n b) where there are surplus workers
    ring                  2 (p - 1) a + 2 (p - 1)/p n b

An allreduce takes the cheapest of the three. An allgather by a ring, which is what gloo does, takes
``(p - 1) (a + n b)``, and shared memory, where each worker writes once and reads everyone, ``a + (p - 1) n b``.

Sources: Hockney, "The communication challenge for MPP", 1994 (the message); Thakur, Rabenseifner and Gropp,
"Optimization of collective communication operations in MPICH", 2005 (the algorithms).
"""

from __future__ import annotations

from wholebatch.cost.plan.record import Exchange, Link


def exchange_us(link: Link, way: Exchange, workers: int, size: int) -> float:
    """Microseconds until each of ``workers`` has what all of them brought.

    Args:
        link: what a message takes.
        way: how.
        workers: at least 1; one worker exchanges nothing.
        size: bytes that each worker brings; where there are none there is no message.
    """
    if workers == 1 or size == 0:
        return 0.0
    if way == "allgather":
        return (workers - 1) * _message(link, size)
    if way == "shared memory":
        return _message(link, (workers - 1) * size)
    return min(allreduce_us(link, workers, size).values())


def allreduce_us(link: Link, workers: int, size: int) -> dict[str, float]:
    """Microseconds by algorithm; ``workers`` is at least 2."""
    halvings = workers.bit_length() - 1
    power = 1 << halvings
    surplus = 0.0 if power == workers else 2 * _message(link, size)
    latency, transfer = link.latency_us, size / link.megabytes_per_second
    return {
        "recursive doubling": halvings * _message(link, size) + surplus,
        "halving-doubling": 2 * halvings * latency + 2 * (power - 1) / power * transfer + surplus,
        "ring": 2 * (workers - 1) * latency + 2 * (workers - 1) / workers * transfer,
    }


def _message(link: Link, size: int) -> float:
    return link.latency_us + size / link.megabytes_per_second
