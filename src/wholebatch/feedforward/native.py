"""The native engine: example-threads in C++ (``native/``), behind the same face as the reference.

The net's parameters stay ordinary torch tensors. At the start of an epoch they are copied into the engine's own layout
(weights in panels that the matrix products read in order), and back at its end.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from wholebatch.feedforward.data import NUMPY_DTYPES, Data
from wholebatch.feedforward.engine import EpochResult, NonFiniteLossError, Progress, make_state
from wholebatch.feedforward.module import FeedForward, Layer
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.reference import ReferenceEngine
from wholebatch.feedforward.settings import Loss, MatmulPrecision, Optimizer, Split
from wholebatch.feedforward.spreading import Spreading
from wholebatch.feedforward.threads import choose_split, choose_threads, usable_cores
from wholebatch.feedforward.views import Views
from wholebatch.kernels import native_module
from wholebatch.sharing import Meeting

# The share of an epoch that a thread is parked or put aside which tells of busy cores; on free ones it is about 0.
WAIT_SHARE = 0.25


class NativeEngine:
    """See :class:`wholebatch.feedforward.engine.Engine`."""

    predicted_rows: ClassVar = 1

    def __init__(
        self,
        model: FeedForward,
        loss: Loss,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        n_threads: int | None = None,
        split: Split = "auto",
        peers: Peers | None = None,
        matmul_precision: MatmulPrecision = "highest",
    ) -> None:
        self.model, self.loss, self.optimizer, self.seed = model, loss, optimizer, seed
        self.matmul_precision = matmul_precision
        self._parts = model.parts()
        self._views = Views(self._parts, dict(zip(optimizer.state_names, ("first", "second"), strict=False)))
        self.n_threads, self.split = n_threads, split
        self.step = 0
        self.optimizer_state = make_state(model, optimizer)
        self._networks: dict[tuple[int, bool], Any] = {}
        self._most_threads, self._crowded_epochs = usable_cores(1 if peers is None else peers.on_host), 0
        self.peers = None if peers is None or peers.shards == 1 else peers
        self._spreading = None if self.peers is None else Spreading(self.peers, model, loss)

    def train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        progress: Progress | None = None,
        *,
        counts: np.ndarray | None = None,
    ) -> EpochResult:
        network = self._network(int(np.diff(offsets).max()))
        self._load(network)
        rates = np.ascontiguousarray(learning_rates, dtype=np.float64)
        steps = len(offsets) - 1
        start = time.perf_counter()
        total = self._run(network, data, order, offsets, rates, counts, track=True, progress=progress)
        self._spare_busy_cores(network.waited() / (time.perf_counter() - start))
        self._check_update(network, steps)
        done = self.step + steps
        try:
            self._store(network)
        except KeyboardInterrupt:  # better an epoch more than a net that is half of this epoch and half of the last
            self._store(network)
            self.step = done
            raise
        self.step = done
        examples = int(offsets[-1] if counts is None else counts.sum())
        return EpochResult(total / examples, examples, steps, network.penalty() / examples)

    def gradients(
        self, data: Data, *, update_running_statistics: bool = False, counts: np.ndarray | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        network = self._network(len(data))
        self._load(network)
        order, offsets = np.arange(len(data)), np.array([0, len(data)])
        total = self._run(network, data, order, offsets, None, counts, track=update_running_statistics, progress=None)
        if update_running_statistics:
            self._store_running(network)
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self._parts):
            for role, name, parameter in layer.parameters():
                found[name] = torch.empty_like(parameter, memory_format=torch.contiguous_format)
                network.get(index, role, "gradient", found[name].numpy())
        return total / (len(data) if counts is None else int(counts.sum())), found

    def predict(self, x: object) -> np.ndarray:
        inputs = _inputs(x)
        rows = x.shape[0]  # type: ignore[attr-defined]
        network = self._network(rows)
        self._load(network)
        out = np.empty((rows, self.model.architecture.out_features), NUMPY_DTYPES[self._dtype()])
        network.predict(*inputs, out)
        return out

    def _dtype(self) -> torch.dtype:
        return self._parts[0].linear.weight.dtype

    def _spare_busy_cores(self, waited: float) -> None:
        """Where others hold the cores, a team waits for whichever of its threads was put aside: halve it.

        Twice in a row, for anyone is put aside once. No result depends on the number of threads, so it may change
        between epochs.
        """
        self._crowded_epochs = self._crowded_epochs + 1 if waited > WAIT_SHARE else 0
        if self._crowded_epochs == 2:
            self._crowded_epochs = 0
            self._most_threads = max(1, min(self._most_threads, usable_cores()) // 2)

    def _network(self, rows: int) -> Any:
        """The compiled net for so many rows: one for mini-batches and one for large predictions stay at hand."""
        key = threads, by_neuron = self._plan(rows)
        if key not in self._networks:
            kind = "NetworkFloat64" if self._dtype() == torch.float64 else "NetworkFloat32"
            while len(self._networks) > 1:
                del self._networks[next(iter(self._networks))]
            self._networks[key] = getattr(native_module(), kind)(self._configuration(threads, by_neuron))
        return self._networks[key]

    def _plan(self, rows: int) -> tuple[int, bool]:
        """How many threads share mini-batches of so many rows, and whether by neuron."""
        threads = self.n_threads or min(self._most_threads, choose_threads(self.model.architecture, rows))
        return threads, (choose_split(rows, threads) if self.split == "auto" else self.split) == "neuron"

    def _configuration(self, threads: int, by_neuron: bool) -> dict[str, Any]:
        a, loss, o = self.model.architecture, self.loss, self.optimizer
        return {
            "sizes": list(a.sizes),
            "norm": a.norm,
            "after": a.norm_position == "after",
            "hidden_bias": a.hidden_bias,
            "activation": a.activation,
            "dropout": a.dropout,
            "eps": a.eps,
            "momentum": -1.0 if a.momentum is None else a.momentum,
            "loss": loss.kind,
            "label_smoothing": loss.label_smoothing,
            "delta": loss.delta,
            "scale": loss.scale,
            "alpha": loss.alpha,
            "weigh_moments": loss.weigh_moments,
            "class_weights": list(loss.class_weights or ()),
            "optimizer": o.kind,
            "nesterov": o.nesterov,
            "optimizer_momentum": o.momentum,
            "beta1": o.betas[0],
            "beta2": o.betas[1],
            "optimizer_eps": o.eps,
            "eps_hat": o.eps_hat,
            "weight_decay": o.weight_decay,
            "max_grad_norm": o.max_grad_norm or 0.0,
            "seed": self.seed,
            "threads": threads,
            "by_neuron": by_neuron,
            "spread": self.peers is not None,
            "matmul_precision": self.matmul_precision,
        }

    def _run(
        self,
        network: Any,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        rates: np.ndarray | None,
        counts: np.ndarray | None = None,
        *,
        track: bool,
        progress: Progress | None,
    ) -> float:
        assert data.y is not None
        classes, values = (data.y, None) if self.loss.takes_classes else (None, data.y)
        order = np.ascontiguousarray(order, dtype=np.int64)
        spread = None
        if self._spreading is not None:
            assert counts is not None
            try:
                spread = self._spreading.open(network, data, order, counts)
            except KeyboardInterrupt as error:  # any other error is raised on all ranks
                self._spreading.peers.fail(error)
                raise
        try:
            total: float = network.run(
                *_inputs(data.x),
                classes,
                values,
                data.sample_weight,
                order,
                np.ascontiguousarray(offsets, dtype=np.int64),
                self.step,
                rates,
                track,
                progress,
                spread,
            )
        except ArithmeticError as error:
            step, layer = error.args
            batch = data.take(order[offsets[step - 1] : offsets[step]])
            layer = min(layer, self._first_layer_not_finite(network, batch, self.step + step - 1))
            if self._spreading is not None:
                layer = self._spreading.peers.least(layer, Meeting("step", "not finite"))
            raise NonFiniteLossError(step, layer, len(self._parts)) from None
        except BaseException as error:
            if self._spreading is not None:
                self._spreading.peers.fail(error)
            raise
        return total

    def _first_layer_not_finite(self, network: Any, batch: Data, step: int) -> int:
        """Looked for by the reference, for between two sums the compiled net keeps nothing to look at.

        Over ranks each looks at its own rows.
        """
        if len(batch) < 2 and self.model.architecture.waits:
            return len(self._parts)
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for index, layer in enumerate(model.parts()):
                for role, _, parameter in layer.parameters():
                    parameter.copy_(torch.from_numpy(self._value(network, index, role, parameter)))
        reference = ReferenceEngine(model, self.loss, self.optimizer, seed=self.seed)
        reference.step = step
        return reference.first_layer_not_finite(batch)

    def _check_update(self, network: Any, step: int) -> None:
        """Raise where the epoch's last update left a parameter that is not finite: no later loss would tell."""
        for index in range(len(self._parts)):
            if not network.is_finite(index):
                raise NonFiniteLossError(step, index + 1, len(self._parts), subject="the update")

    def _value(self, network: Any, index: int, role: str, parameter: Tensor) -> np.ndarray:
        value = np.empty(tuple(parameter.shape), NUMPY_DTYPES[self._dtype()])
        network.get(index, role, "value", value)
        return value

    def _each(self, visit: Callable[[int, str, str, np.ndarray], None]) -> None:
        """``visit(layer, role, form, array)`` for every parameter and its optimizer state, contiguous."""
        for view in self._views.of(self.optimizer_state):
            if view.array is not None:
                visit(view.layer, view.role, view.form, view.array)
                continue
            whole = view.tensor.detach().contiguous()
            visit(view.layer, view.role, view.form, whole.numpy())
            view.tensor.detach().copy_(whole)

    def _load(self, network: Any) -> None:
        self._each(network.set)
        for index, layer in self._batch_norms():
            norm: Any = layer.norm
            mean, var = (t.double().contiguous().numpy() for t in (norm.running_mean, norm.running_var))
            network.set_running(index, mean, var, float(norm.num_batches_tracked))
        network.refresh()

    def _store(self, network: Any) -> None:
        self._each(network.get)
        self._store_running(network)

    def _store_running(self, network: Any) -> None:
        for index, layer in self._batch_norms():
            norm: Any = layer.norm
            mean, var = (np.empty(layer.linear.out_features) for _ in range(2))
            tracked = network.get_running(index, mean, var)
            norm.running_mean.copy_(torch.from_numpy(mean))
            norm.running_var.copy_(torch.from_numpy(var))
            norm.num_batches_tracked.fill_(int(tracked))

    def _batch_norms(self) -> list[tuple[int, Layer]]:
        return [(i, p) for i, p in enumerate(self._parts) if isinstance(p.norm, torch.nn.BatchNorm1d)]


def _inputs(x: Any) -> tuple[Any, ...]:
    """``x`` as the compiled net takes it: dense, or the arrays of a CSR matrix by the width of their indices."""
    if not scipy.sparse.issparse(x):
        return (x, None, None, None, None, None)
    narrow = x.indices.dtype == np.int32 and x.indptr.dtype == np.int32
    both = (x.indices, x.indptr) if narrow else (x.indices.astype(np.int64), x.indptr.astype(np.int64))
    return (None, x.data, *both, None, None) if narrow else (None, x.data, None, None, *both)
