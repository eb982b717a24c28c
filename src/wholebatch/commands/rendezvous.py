"""Where the ranks of one host meet: a store on the loopback interface, a new one for every start."""

from __future__ import annotations

import socket
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

LOOPBACK = "127.0.0.1"


class Loopback(RendezvousHandler):
    """A rendezvous of one agent with itself.

    torch's own (c10d) keeps a store that listens on every interface, where anyone who reaches the port can read and
    set its keys. This one is handed a socket that is bound to the loopback interface.

    Args:
        run_id: names the launch.
        timeout: seconds that a rank waits for the store.
    """

    def __init__(self, run_id: str, timeout: float) -> None:
        self._run_id, self._timeout = run_id, timedelta(seconds=timeout)
        self._store: TCPStore | None = None
        self._closed = False

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """The ranks are to use this store, and to make none."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        server = socket.create_server((LOOPBACK, 0))
        port = server.getsockname()[1]
        self._store = TCPStore(
            LOOPBACK,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=server.detach(),
        )
        return RendezvousInfo(self._store, 0, 1, RendezvousStoreInfo(LOOPBACK, port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed, self._store = True, None
        return True
