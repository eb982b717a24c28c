"""Processes that have the libraries imported: a server imports them once, which takes seconds, and forks each.

A process of Python has one such server, with the imports that its first user asks for, and the commands under test use
it, too. So all of them get it here, and `conftest.py` starts it before a worker's first test: else that test's needs
would decide how long the processes of all others import, and which signals they have blocked.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from functools import cache
from multiprocessing.context import ForkServerContext

# What is missing is left out.
PRELOADED = [
    *("wholebatch.runs.session", "wholebatch.commands.train", "wholebatch.commands.predict", "sklearn.model_selection"),
    *("wholebatch.sharing", "wholebatch.layers", "wholebatch.conversion", "wholebatch.sklearn"),
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"),  # any optimizer: _dynamo
    *("torch.distributed.elastic.multiprocessing", "pytest", "hypothesis"),
    "transformers.models.resnet.modeling_resnet",
]


@cache
def server() -> ForkServerContext:
    """Makes processes; importing goes on in the background."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.forkserver.ensure_running()
    return context
