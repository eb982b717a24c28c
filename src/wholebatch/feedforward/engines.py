"""Which engine a net gets."""

from __future__ import annotations

from typing import Any, get_args

import torch

from wholebatch import kernels
from wholebatch.devices import check_device
from wholebatch.feedforward.device.engine import DeviceEngine
from wholebatch.feedforward.device.memory import check_room
from wholebatch.feedforward.engine import Engine
from wholebatch.feedforward.footprint import describe, native_need, net_bytes, reference_need
from wholebatch.feedforward.memory import Need
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.reference import ReferenceEngine
from wholebatch.feedforward.settings import Architecture, Loss, MatmulPrecision, Optimizer, Split, check_precision
from wholebatch.feedforward.threads import choose_split, choose_threads

ENGINES = ("auto", "native", "reference", "device")
Device = torch.device | str | None


def make_engine(
    model: FeedForward,
    loss: Loss,
    optimizer: Optimizer,
    *,
    seed: int = 0,
    n_threads: int | None = None,
    split: Split = "auto",
    engine: str = "auto",
    peers: Peers | None = None,
    matmul_precision: MatmulPrecision = "highest",
    device: Device = None,
) -> Engine:
    """The engine for this net: on a GPU ``device``; on the CPU ``native`` where the compiled part is there, else
    ``reference``, which is said once.

    Args:
        n_threads: example-threads; None chooses by shape and cores. The result does not depend on it. (The reference
            hands it to torch, whose results may; None leaves torch's own choice, and over shards is 1.)
        split: ``example``, ``neuron`` or ``auto``: who holds what. The result does not depend on it either.
        engine: ``auto``, ``native``, ``reference``, or ``device``: what a GPU gets, and on the CPU is for tests.
        peers: who else holds rows of each mini-batch; None: this process has all of them.
        device: where it computes, wherever the net lies; None: the CPU.
        matmul_precision: of the products of training (:mod:`wholebatch.feedforward.products`): ``highest``, ``high`` or
            ``medium``. On a processor without a unit for bfloat16 the native engine multiplies float32 numbers, and
            says so once. Predictions are always of the highest.

    Raises:
        ValueError: an unknown engine, split or precision, ``n_threads`` below 1, ``native`` where it was not built, a
            precision other than ``highest`` for a net that is not in float32.
    """
    kind = engine_kind(engine, device)
    check_precision(matmul_precision, model.parts()[0].linear.weight.dtype)
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; choose one of {', '.join(map(repr, get_args(Split)))}")
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"n_threads is {n_threads}; it must be at least 1, or None to choose by shape")
    if kind is DeviceEngine:
        return DeviceEngine(
            model,
            loss,
            optimizer,
            seed=seed,
            n_threads=n_threads,
            peers=peers,
            matmul_precision=matmul_precision,
            device=device or "cpu",
        )
    if kind is NativeEngine:
        over: dict[str, Any] = {} if peers is None else {"peers": peers}
        if native_precision(matmul_precision, say=True) != "highest":
            over["matmul_precision"] = matmul_precision
        return NativeEngine(model, loss, optimizer, seed=seed, n_threads=n_threads, split=split, **over)
    return ReferenceEngine(
        model, loss, optimizer, seed=seed, n_threads=n_threads, peers=peers, matmul_precision=matmul_precision
    )


def engine_kind(engine: str, device: Device = None) -> type[NativeEngine] | type[ReferenceEngine] | type[DeviceEngine]:
    """The engine that a name of :data:`ENGINES` means here; errors as :func:`make_engine`."""
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; choose 'auto', 'native', 'reference' or 'device'")
    check_device(device)
    if not is_on_cpu(device) and torch.device(str(device)).type != "cuda":
        raise ValueError(f"device is {str(device)!r}; nets are trained on 'cpu' or 'cuda': choose one of these")
    if is_on_cpu(device):
        if engine == "device":
            return DeviceEngine
    elif engine in ("auto", "device"):
        return DeviceEngine
    else:
        raise ValueError(f"engine {engine!r} computes on the CPU, and device is {str(device)!r}; choose engine='auto'")
    return NativeEngine if _is_native(engine, say=True) else ReferenceEngine


def native_precision(matmul_precision: MatmulPrecision, *, say: bool = False) -> MatmulPrecision:
    """The precision that the native engine's products have here: ``highest`` where there is no unit for bfloat16.

    Args:
        say: warn, once per process, where that is not what was asked for.
    """
    if matmul_precision == "highest" or kernels.product_unit(matmul_precision) is not None:
        return matmul_precision
    if say:
        kernels.say_no_product_unit()
    return "highest"


def describe_products(engine: str, matmul_precision: MatmulPrecision, device: Device = None) -> str:
    """How the products of training are made here: their precision, and by what unit of the processor."""
    if matmul_precision == "highest":
        return "float32"
    if not (is_on_cpu(device) and _is_native(engine)):
        return f"bfloat16 ({matmul_precision}), by torch"
    unit = kernels.product_unit(matmul_precision)
    if unit is None:
        return f"float32, for want of a bfloat16 unit ({matmul_precision} asked for)"
    return f"bfloat16 ({matmul_precision}), by {unit}"


def is_on_cpu(device: Device) -> bool:
    """Whether a device, as a person names it, is the CPU."""
    return device is None or torch.device(device).type == "cpu"


def describe_engine(
    engine: str, n_threads: int | None, matmul_precision: MatmulPrecision = "highest", device: Device = None
) -> str:
    """What the bits depend on, beside the settings: where ranks differ in it, so do their nets.

    Raises:
        ValueError: as :func:`make_engine`, or ``WHOLEBATCH_INSTRUCTION_SET`` names what is not here.
    """
    kind = engine_kind(engine, device)
    if not is_on_cpu(device):
        return f"{kind.__name__} on {torch.cuda.get_device_name(device)}, products of precision {matmul_precision}"
    threads = f", {n_threads or 1} threads" if kind is not NativeEngine else ""  # not on those of the other one
    products = "" if matmul_precision == "highest" else f", products in {describe_products(engine, matmul_precision)}"
    return f"{kind.__name__} with {kernels.instruction_set()} instructions{threads}{products}"


def _is_native(engine: str, *, say: bool = False) -> bool:
    if engine == "native":
        kernels.native_module()  # says what to do where it is missing
        return True
    return engine == "auto" and kernels.native_available(say=say)


def check_fit(
    architecture: Architecture,
    optimizer: Optimizer,
    rows: int,
    dtype: torch.dtype,
    *,
    n_threads: int | None = None,
    engine: str = "auto",
    held: int = 0,
    net: int = 0,
    peers: Peers | None = None,
    matmul_precision: MatmulPrecision = "highest",
    device: Device = None,
) -> None:
    """Refuse a training that does not fit in memory, before any is taken.

    Args:
        rows: of the largest mini-batch, those of this process.
        held: rows held out, which are predicted after each epoch.
        net: bytes, beside the engine's own, that grow with the net: the net itself where it is not there yet.
        peers: who else trains: those on this host need as much each, and a gradient of each shard is kept.
        matmul_precision: of training; what is rounded is kept beside what it was rounded from.
        device: where the engine computes.

    Raises:
        ValueError: naming the bytes needed and free, and the remedy.
    """
    what = f"training {describe(architecture)} by mini-batches of {rows:,}"
    if not is_on_cpu(device):
        need = reference_need(architecture, optimizer, rows, dtype, matmul_precision)
        check_room(torch.device(device or "cuda"), need.total, what)
        return
    if _is_native(engine):
        threads = n_threads or choose_threads(architecture, rows)
        precision = native_precision(matmul_precision)
        need = native_need(architecture, optimizer, rows, dtype, threads, precision)
        then = n_threads or choose_threads(architecture, held)
        if held and (then, choose_split(held, then)) != (threads, choose_split(rows, threads)):
            need = need.plus(net=native_need(architecture, optimizer, 0, dtype, then, precision).net)
    else:
        need = reference_need(architecture, optimizer, rows, dtype, matmul_precision)
    need, whose = need.plus(net=net), ""
    if peers is not None and peers.shards > 1:
        parts = peers.shards * net_bytes(architecture, dtype, buffers=False)
        need = need.times(peers.on_host).plus(net=parts)  # the parts lie in memory that all of a host share
        whose = f" on each of {peers.on_host} ranks of this host" if peers.on_host > 1 else ""
    need.check(f"{what}{whose}")


def check_predict(
    architecture: Architecture,
    rows: int,
    dtype: torch.dtype,
    *,
    n_threads: int | None = None,
    engine: str = "auto",
    made: bool = False,
    device: Device = None,
) -> None:
    """Refuse to predict more rows at a time than fit in memory, before any is taken.

    Args:
        made: the engine is there, with its buffers.

    Raises:
        ValueError: naming the bytes needed and free, and the remedy.
    """
    need = Need(rows=1, dtype=dtype)
    if is_on_cpu(device) and _is_native(engine) and not made:
        threads = n_threads or choose_threads(architecture, rows)
        need = native_need(architecture, Optimizer("sgd"), 0, dtype, threads)
    outputs = 2 * rows * architecture.out_features * dtype.itemsize  # as they come, and as probabilities
    need.plus(table=outputs).check(f"predicting {rows:,} rows with {describe(architecture)}")
