"""The compiled part (native/bindings.cpp). Arrays are C-contiguous; the callers check shapes."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T", np.float32, np.float64)

def instruction_set() -> str:
    """Which kernels run: avx512, avx2 or portable. ValueError where WHOLEBATCH_INSTRUCTION_SET is wrong."""

def product_unit(matmul_precision: str = "medium") -> str | None:
    """What multiplies bfloat16 numbers here: amx, avx512_bf16, or None where nothing does faster than float32.

    ValueError where WHOLEBATCH_PRODUCT_UNIT is wrong.
    """

def rounded_product(
    matmul_precision: str,
    turned: bool,
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    start: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> bool:
    """out = start + a b with rounded operands, or of a.T and b.T where `turned`: for tests. False: no unit for it."""

def has_counter() -> bool:
    """Whether marks are made with the processor's counter; else with the system's steady clock."""

def mark_cost(marks: int) -> float:
    """Nanoseconds that one of so many marks takes."""

def fma_peak(threads: int, bursts: int, seconds: float) -> float:
    """Operations per second, the best of so many bursts of about so many seconds each."""

def memory_bandwidth(threads: int, sweeps: int, count: int) -> float:
    """Bytes per second, the best of so many sweeps of a = b + s * c over arrays of count float32 each."""

# native/batch_norm_bindings.cpp. `part` stands for storage, n, channels, inner; addresses of what is not there are 0.
def use_threads(parallel_for: int, count_threads: int, /) -> None:
    """Addresses of torch's functions of these names, or 0."""

def advise_huge_pages(address: int, size: int, /) -> None:
    """Ask the system for pages of 2 MiB where memory of `size` bytes was not touched yet."""

# native/batch_norm_steps_bindings.cpp. Of `train`, what it is given as tensors, and so on: wholebatch/ordinary.py.
def use_exchange(tensor: type[Tensor], parameter: type[Tensor], capsule: object | None) -> bool:
    """Whether tensors can be looked at, by torch's table of functions for that."""

class Found:
    """What a forward call found, for its backward call."""

    @property
    def count(self) -> float:
        """Elements of a channel in the whole mini-batch."""

    @property
    def addresses(self) -> tuple[int, int]:
        """Of mean and rstd."""

def fits(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, counter: Tensor | None,
) -> int: ...  # fmt: skip
def train(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, y: Tensor,
    running_mean: Tensor | None, running_var: Tensor | None, counter: Tensor | None,
    slope: float, eps: float, momentum: float,
) -> Found: ...  # fmt: skip
def train_together(
    box: Mailbox, header: bytes, z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    y: Tensor, running_mean: Tensor | None, running_var: Tensor | None, counter: Tensor | None,
    slope: float, eps: float, momentum: float,
) -> tuple[int, Found]: ...  # fmt: skip
def train_on(
    box: Mailbox, found: Found, z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    y: Tensor, running_mean: Tensor | None, running_var: Tensor | None, counter: Tensor | None,
    slope: float, eps: float, momentum: float,
) -> None: ...  # fmt: skip
def differentiate(
    found: Found, g: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    dz: Tensor, dresidual: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, slope: float,
) -> bool: ...  # fmt: skip
def differentiate_together(
    box: Mailbox, header: bytes, found: Found, g: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, dz: Tensor, dresidual: Tensor | None, dweight: Tensor | None, dbias: Tensor | None,
    slope: float,
) -> int: ...  # fmt: skip
def differentiate_on(
    box: Mailbox, found: Found, g: Tensor, z: Tensor, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, dz: Tensor, dresidual: Tensor | None, dweight: Tensor | None, dbias: Tensor | None,
    slope: float,
) -> None: ...  # fmt: skip
def batch_norm_rstd(wide: bool, channels: int, m2: int, count: float, eps: float, rstd: int, /) -> None: ...
def move_running(wide: bool, channels: int, to: int, divisor: float, momentum: float, running: int, /) -> None: ...
def batch_norm_moments(storage: int, n: int, channels: int, inner: int, z: int, mean: int, m2: int, /) -> None: ...
def batch_norm_apply(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, y: int, mean: int, rstd: int, /,
) -> None: ...  # fmt: skip
def batch_norm_forward(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, y: int, eps: float, statistics: int,
    running_mean: int, running_var: int, momentum: float, /,
) -> None: ...  # fmt: skip
def batch_norm_finish(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, y: int, eps: float, statistics: int, count: float,
    running_mean: int, running_var: int, momentum: float, /,
) -> None: ...  # fmt: skip
def batch_norm_sums(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, g: int, mean: int, rstd: int, sums: int,
    dweight: int, dbias: int, /,
) -> None: ...  # fmt: skip
def batch_norm_input_gradient(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, g: int, mean: int, rstd: int, sums: int,
    count: float, dz: int, dresidual: int, /,
) -> None: ...  # fmt: skip
def batch_norm_backward(
    storage: int, n: int, channels: int, inner: int,
    z: int, residual: int, weight: int, bias: int, slope: float, g: int, mean: int, rstd: int,
    count: float, dz: int, dresidual: int, dweight: int, dbias: int, /,
) -> None: ...  # fmt: skip

class _Network(Generic[T]):
    def __init__(self, configuration: dict[str, Any], /) -> None: ...
    def set(self, layer: int, role: str, form: str, array: NDArray[T], /) -> None:
        """Copy an array of torch's shape in. role: weight, bias, norm_weight, norm_bias; form: value, first, second."""
    def get(self, layer: int, role: str, form: str, array: NDArray[T], /) -> None:
        """Copy out into an array of torch's shape; form may also be gradient."""
    def set_running(
        self, layer: int, mean: NDArray[np.float64], var: NDArray[np.float64], tracked: float, /
    ) -> None: ...
    def get_running(self, layer: int, mean: NDArray[np.float64], var: NDArray[np.float64], /) -> float:
        """Copy out; returns num_batches_tracked."""
    def refresh(self) -> None:
        """After `set`: makes what the products need besides the weights."""
    def penalty(self) -> float:
        """The part of the last run's total that alpha added."""
    def is_finite(self, layer: int) -> bool:
        """Whether all parameters of a layer are finite."""
    def record(self, steps: int, slow: int, factor: float, turns: int = 1, turn: int = 0) -> None:
        """From the next run on, mark what each thread does in up to so many steps; 0 ends it.

        The thread `slow` (-1: none) is idle after each of its computations until it took `factor` times as long;
        with `turns` above 1 after one in so many of them, others for each `turn` below it.
        """
    def marks(self, worker: int, /) -> int:
        """How many marks a thread made in the last run."""
    def read_marks(self, worker: int, out: NDArray[np.int64], /) -> None:
        """Into (marks, 5): nanoseconds, step, layer, what was done, stage (the enums of native/timeline.h)."""
    def lasted(self) -> float:
        """Seconds that the steps of the last run took, all together."""
    def exchanged(self) -> float:
        """Seconds of the last run in which this process told other ranks something and merged what they told."""
    def awaited(self) -> float:
        """Seconds of the last run in which it waited for other ranks."""
    def part_size(self) -> int:
        """Elements that the parts of all weight gradients take up, for one shard."""
    def part_of(self, layer: int) -> tuple[int, int]:
        """Where in them those of a layer begin and end."""
    def waited(self) -> float:
        """Seconds that the calling thread was parked or put aside in the last run."""
    def run(
        self,
        dense: NDArray[T] | None,
        data: NDArray[T] | None,
        indices32: NDArray[np.int32] | None,
        indptr32: NDArray[np.int32] | None,
        indices64: NDArray[np.int64] | None,
        indptr64: NDArray[np.int64] | None,
        classes: NDArray[np.int64] | None,
        values: NDArray[T] | None,
        weights: NDArray[T] | None,
        order: NDArray[np.int64],
        offsets: NDArray[np.int64],
        first_step: int,
        learning_rates: NDArray[np.float64] | None,
        track: bool,
        progress: Callable[[int, float], None] | None,
        spread: dict[str, Any] | None,
    ) -> float:
        """An epoch, or with learning_rates None the gradients of each step. Returns the sum of loss times examples.

        ``spread``: the fields of native/spread.h, of a mini-batch in shards.

        Raises ArithmeticError(step, layer) where the loss is not finite.
        """
    def predict(
        self,
        dense: NDArray[T] | None,
        data: NDArray[T] | None,
        indices32: NDArray[np.int32] | None,
        indptr32: NDArray[np.int32] | None,
        indices64: NDArray[np.int64] | None,
        indptr64: NDArray[np.int64] | None,
        out: NDArray[T],
    ) -> None: ...

class NetworkFloat32(_Network[np.float32]): ...
class NetworkFloat64(_Network[np.float64]): ...

def merge_moments(gathered: int, ranks: int, channels: int, mean: int, m2: int, wide: bool) -> float:
    """Merge rows (count, mean, M2) of float64 at one address into two vectors at others; returns the count.

    ``wide``: these are float64, or else float32.
    """

def add_parts(gathered: int, ranks: int, width: int, out: int, wide: bool) -> None:
    """Add up rows (count, vectors) of float64 at one address into vectors at another."""

class Mailbox:
    """The shared memory of a group's ranks (native/mailbox.h; Linux only). RuntimeError: it cannot be had."""

    @overload
    def __init__(self, *, cookie: int, ranks: int, rank: int) -> None: ...
    @overload
    def __init__(self, *, path: str, cookie: int, ranks: int, rank: int) -> None: ...
    def descriptor(self) -> int: ...
    def seal(self) -> None: ...
    def meet(
        self,
        header: bytes,
        count: float,
        first: int,
        first_elements: int,
        second: int,
        second_elements: int,
        wide: bool,
        out: int,
        seconds: float,
    ) -> int: ...
    def begin(self, header: bytes, vector: int, elements: int, wide: bool, out: int) -> None: ...
    def stand_by(self, seconds: float) -> int: ...
    def wait(self, seconds: float) -> int: ...
    def mark(self, doing: int, text: bytes) -> None: ...
    def position(self, rank: int) -> tuple[int, int, float, bytes, bytes]: ...
    def missing(self) -> list[int]: ...
