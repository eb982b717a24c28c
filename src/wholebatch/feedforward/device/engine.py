"""The device engine: the same training on a GPU, whole steps at a time, in torch's operations and Triton's kernels.

    once       the table, the order of an epoch, its learning rates: all on the device
    each step  gather rows, forward, backward, exchange, update: launched, or replayed as one CUDA graph
    now and then, and at the end: read the losses

A step reads nothing from the device and is told nothing, so that the host runs ahead. A loss that is not finite is
therefore found late: at the next look (a few times a second; over ranks at the end of the epoch). The epoch is then run
again up to that step, to find the layer. The engine works on copies of the net, which it gives back at the end of an
epoch; the net itself may lie on the CPU or on the device.

On the CPU (``engine="device"``) it runs the same code, without graphs: that is how it is tested.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from wholebatch.devices import check_device
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.device.course import Course
from wholebatch.feedforward.device.meetings import Meetings
from wholebatch.feedforward.device.minibatch import Pass
from wholebatch.feedforward.device.parameters import Parameters
from wholebatch.feedforward.device.replays import Pace, Replays
from wholebatch.feedforward.device.table import Table, dense_rows
from wholebatch.feedforward.device.totals import step_totals
from wholebatch.feedforward.device.update import Update
from wholebatch.feedforward.engine import EpochResult, NonFiniteLossError, Progress, make_state
from wholebatch.feedforward.module import FeedForward, in_mode
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Loss, MatmulPrecision, Optimizer
from wholebatch.feedforward.torch_threads import torch_threads

LOOK_SECONDS = 0.25  # between two looks at the losses, each of which waits for the device


class DeviceEngine:
    """See :class:`wholebatch.feedforward.engine.Engine`.

    Args:
        device: where it computes; None: where the net lies.
        graphs: CUDA graphs, see :class:`Replays`.
        n_threads: torch's, on the CPU.

    Raises:
        ValueError: there is no such device, or ranks whose group does not serve it.
    """

    predicted_rows: ClassVar = 8192

    def __init__(
        self,
        model: FeedForward,
        loss: Loss,
        optimizer: Optimizer,
        *,
        seed: int = 0,
        n_threads: int | None = None,
        peers: Peers | None = None,
        matmul_precision: MatmulPrecision = "highest",
        device: torch.device | str | None = None,
        graphs: bool = True,
    ) -> None:
        check_device(device)
        self.matmul_precision = matmul_precision
        self.model, self.loss, self.optimizer, self.seed = model, loss, optimizer, seed
        self.device = resolve_device(model, device)
        self.peers = None if peers is None or peers.shards == 1 else peers
        self.n_threads = n_threads or (None if self.peers is None else 1)
        self.step = 0
        self.optimizer_state = make_state(model, optimizer)
        self._meetings = Meetings(self.peers, self.device)
        self._parameters = Parameters(model, self.device, len(self._meetings.own))
        self._update = Update(optimizer, self._parameters.flat, self._parameters.total)
        self._course = Course(self.device, self._meetings.own)
        self._replays = Replays(self.device, graphs=graphs)
        self._table: Table | None = None
        self._pass: Pass | None = None

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
        try:
            with self._working():
                return self._train_epoch(data, order, offsets, learning_rates, progress, counts)
        except BaseException as error:
            if self.peers is not None and not isinstance(error, NonFiniteLossError):  # that, all ranks raise
                self.peers.fail(error)
            raise

    def gradients(
        self, data: Data, *, update_running_statistics: bool = False, counts: np.ndarray | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        with self._working():
            order, offsets = np.arange(len(data)), np.array([0, len(data)])
            counts = self._begin(data, order, offsets, np.zeros(1), counts)
            self._step(tuple(counts[0].tolist()), update=False)
            losses = self._course.losses.cpu()
            self._check_losses(losses, counts, restart=False)
            if update_running_statistics:
                self._parameters.store_running()
            found = self._parameters.views(self._parameters.total)
            place = next(self.model.parameters()).device
            named = {name: found[name].detach().clone().to(place) for name, _ in self.model.named_parameters()}
            return float(losses[0]), named

    def predict(self, x: object) -> np.ndarray:
        rows: int = x.shape[0]  # type: ignore[attr-defined]
        with in_mode(self.model, training=False), self._working():
            self._parameters.load()
            blocks = [
                self._parameters.call(
                    self.model, dense_rows(x, start, start + self.predicted_rows).to(self.device)
                ).cpu()
                for start in range(0, max(rows, 1), self.predicted_rows)
            ]
        return np.concatenate([block.numpy() for block in blocks])

    @contextmanager
    def _working(self) -> Iterator[None]:
        threads = torch_threads(self.n_threads) if self.device.type == "cpu" else nullcontext()
        with threads, torch.no_grad(), self._replays.working():
            yield

    def _train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        rates: np.ndarray,
        progress: Progress | None,
        counts: np.ndarray | None,
    ) -> EpochResult:
        counts = self._begin(data, order, offsets, rates, counts)
        self._load_state()
        steps, rows = len(counts), counts.sum(1)
        done, told, pace = rows.cumsum(), time.monotonic(), Pace(self.device)
        for step, sizes in enumerate(counts.tolist()):
            key = tuple(sizes)
            self._replays.run(key, lambda key=key: self._step(key, update=True))  # type: ignore[misc]
            pace.tick(step)
            if time.monotonic() - told > LOOK_SECONDS:
                losses = self._course.losses[: step + 1].cpu()
                if self.peers is None or self.peers.ranks == 1:
                    self._check_losses(losses, counts, restart=True)
                told = time.monotonic()
                if progress is not None:
                    progress(int(done[step]), float(losses.numpy() @ rows[: step + 1] / done[step]))
        losses = self._course.losses.cpu()
        self._check_losses(losses, counts, restart=True)
        layer = self._parameters.first_not_finite()
        if layer is not None:
            raise NonFiniteLossError(steps, layer, len(self.model.parts()), subject="the update")
        penalty = float(self._course.penalties.cpu().numpy() @ rows / done[-1])
        try:
            self._store()
        except KeyboardInterrupt:  # better an epoch more than a net that is half of this epoch and half of the last
            self._store()
            self.step += steps
            raise
        self.step += steps
        return EpochResult(float(losses.numpy() @ rows / done[-1]), int(done[-1]), steps, penalty)

    def _begin(
        self, data: Data, order: np.ndarray, offsets: np.ndarray, rates: np.ndarray, counts: np.ndarray | None
    ) -> np.ndarray:
        """Everything that steps read, onto the device; returns the rows of each shard, ``(steps, shards)``."""
        if self.peers is None:
            counts = np.diff(offsets)[:, None]
        assert counts is not None
        table = self._lay_down(data)
        totals = step_totals(data, order, counts, self._meetings.own, self.loss, self.peers)
        self._parameters.load()
        if self._course.lay(order, counts, totals, rates, self.step) or self._pass is None:
            self._replays.forget()
        if self._pass is None:
            self._pass = self._make_pass(table)
        return counts

    def _make_pass(self, table: Table, *, fused: bool = True) -> Pass:
        return Pass(
            self.model,
            self._parameters,
            self.loss,
            self._meetings,
            self.seed,
            self.matmul_precision,
            centre=table.centre,
            weighted=self.loss.weigh_moments and table.weight is not None,
            fused=fused,
        )

    def _lay_down(self, data: Data) -> Table:
        table = self._table
        if table is None or not table.holds(data):
            self._table = self._pass = None  # its memory is free again before more is asked for
            a = self.model.architecture
            table = self._table = Table(data, self.device, centred=a.waits and not a.hidden_bias, peers=self.peers)
        return table

    def _step(self, sizes: tuple[int, ...], *, update: bool) -> None:
        """A mini-batch of so many rows of each shard: all that a graph captures."""
        assert self._table is not None
        assert self._pass is not None
        batch = self._course.batch(self._table, sizes)
        loss, penalty = self._pass.run(batch)
        if update:
            self._update.rate.copy_(self._course.rate())
            self._update.step()
        own = self._meetings.own
        self._course.move_on(loss, penalty, sum(sizes[own.start : own.stop]))

    def _check_losses(self, losses: Tensor, counts: np.ndarray, *, restart: bool) -> None:
        """Raise where one is not finite; ``restart`` runs the epoch again up to it, to find the layer."""
        bad = (~torch.isfinite(losses)).nonzero()
        if not len(bad):
            return
        step = int(bad[0])
        assert self._table is not None
        self._parameters.load()
        self._course.place.copy_(torch.tensor([0, 0, self.step]))
        if restart:
            self._load_state()
        for sizes in counts[:step].tolist():
            self._step(tuple(sizes), update=True)
        batch = self._course.batch(self._table, tuple(counts[step].tolist()))
        layer = self._make_pass(self._table, fused=False).first_layer_not_finite(batch)
        if self.peers is not None:
            own = torch.full((len(self._meetings.own), 1), layer, device=self.device)
            layer = int(self._meetings.gather(own).wait().min())
        raise NonFiniteLossError(step + 1, layer, len(self.model.parts()))

    def _load_state(self) -> None:
        for state, flat in self._update.states.items():
            for name, view in self._parameters.views(flat).items():
                view.copy_(self.optimizer_state[f"{state}.{name}"])
        self._update.restart(self.step)

    def _store(self) -> None:
        self._parameters.store()
        place = next(self.model.parameters()).device
        for state, flat in self._update.states.items():
            views = self._parameters.views(flat)
            for name, _ in self.model.named_parameters():
                self.optimizer_state[f"{state}.{name}"] = views[name].detach().clone().to(place)


def resolve_device(model: FeedForward, device: torch.device | str | None) -> torch.device:
    """``device`` with its number, or that of the net."""
    if device is None:
        return next(model.parameters()).device
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found
