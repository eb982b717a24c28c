"""Bytes and plain values between the ranks of a group: what they tell each other that is no vector of a meeting.

Every rank calls the same functions in the same order. Contents are taken as they are; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from wholebatch.sharing.groups import find_group
from wholebatch.sharing.post import Content, Post

Group = ProcessGroup | str | None
"""A process group, or ``"world"`` for the default one; None: this process alone."""


def gather_bytes(content: Content, group: Group, what: str = "a message") -> list[bytes]:
    """Every rank's content, in rank order, on every rank.

    Args:
        content: of any length, a different one on each rank.
        group: whose ranks.
        what: what it is about, for the diagnosis; equal on all ranks.

    Raises:
        MeetingError: the ranks do not meet here, and a table of where they are.
        ValueError: torch.distributed is not initialised, or this rank is not in the group.
    """
    post = _post_of(group)
    return [bytes(content)] if post is None else post.gather(content, what)


def broadcast_bytes(content: Content, group: Group, what: str = "a message", source: int = 0) -> bytes:
    """What rank ``source`` of the group brings, on every rank; of the others' contents nothing is sent.

    Arguments and errors as :func:`gather_bytes`.
    """
    post = _post_of(group)
    return bytes(content) if post is None else post.broadcast(content, what, source)


def tell(value: Any, group: Group, what: str = "a message") -> list[Any]:
    """What every rank says, a value that JSON has, in rank order. Errors as :func:`gather_bytes`."""
    return [json.loads(said) for said in gather_bytes(json.dumps(value).encode(), group, what)]


def tell_first(value: Any, group: Group, what: str = "a message") -> Any:
    """What the first rank says, a value that JSON has. Errors as :func:`gather_bytes`."""
    return json.loads(broadcast_bytes(json.dumps(value).encode(), group, what))


def exchange_bytes(contents: Sequence[Content], group: Group, what: str = "a message") -> list[bytes]:
    """``contents[r]`` goes to rank r; returns what each rank had for this one, in rank order.

    Arguments and errors as :func:`gather_bytes`; ValueError too where there is not one content for each rank.
    """
    post = _post_of(group)
    ranks = 1 if post is None else post.ranks
    if len(contents) != ranks:
        raise ValueError(f"{len(contents)} contents for {ranks} ranks; there must be one for each")
    return [bytes(contents[0])] if post is None else post.exchange(contents, what)


def rank_in(group: Group) -> tuple[int, int]:
    """(this rank, how many there are). Errors as :func:`gather_bytes`."""
    post = _post_of(group)
    return (0, 1) if post is None else (post.rank, post.ranks)


def give_up(error: BaseException, group: Group) -> None:
    """Tell the other ranks, who may be waiting for a message, that this one raised ``error``. Does not wait."""
    post = _post_of(group)
    if post is not None:
        post.give_up(error)


_posts: dict[int, Post | None] = {}  # by the group's id, for as long as the group is there


def _post_of(group: Group) -> Post | None:
    """None: nobody else is there."""
    if group is None:
        return None
    found = find_group(group)
    if id(found) not in _posts:
        _posts[id(found)] = None if dist.get_world_size(found) == 1 else Post(found)
        weakref.finalize(found, _posts.pop, id(found), None)
    return _posts[id(found)]
