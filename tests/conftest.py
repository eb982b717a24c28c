"""What every test shares: one thread for torch, hypothesis without clocks, and the engines to test."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from forks import server
from wholebatch.kernels import native_available
from wholebatch.kernels.batch_norm import Kernel, Native, Reference

# The results of torch depend on its number of threads, and two test workers with all cores each are in each other's way
# (measured on four busy cores: 47 ms for a batch norm of 16 rows). The variable reaches the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Without a GPU Triton's interpreter runs its kernels. Triton reads this as it is imported, which torch's compiler does
# too; on the CPU that takes no other way for it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell lets what it runs in the background ignore Ctrl-C, and the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no deadline: a slow machine is no bug.
settings.register_profile(
    "house", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take minutes come first: at the end the other workers would have nothing left to do beside them."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """Of several workers each runs tests of every kind; what it forks from imports while the first ones run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        server()


@pytest.fixture(params=["reference", "native", "device"], scope="session")
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine; ``pytest -k reference`` runs one of them. ``device`` is what a GPU gets, on the CPU."""
    name: str = request.param
    if name == "native" and not native_available():
        pytest.skip("the compiled part of wholebatch is missing: no C++ compiler was found when it was installed")
    return name


@pytest.fixture(params=["reference", "native"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """A kernel of batch norm."""
    if request.param == "native" and not native_available():
        pytest.skip("the compiled part of wholebatch is missing: no C++ compiler was found when it was installed")
    return Native() if request.param == "native" else Reference()


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """scikit-learn's digits: x, x_test, y, y_test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    return tuple(train_test_split(x / 16, y, test_size=0.25, random_state=0))  # type: ignore[return-value]
