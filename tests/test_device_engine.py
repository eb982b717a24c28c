"""What the device engine has of its own; what it has in common with the others is tested with them (``engine``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from oracle import make_data, make_model
from small_problem import X, Y, copy_of, net, same
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.device import engine as device_engine
from wholebatch.feedforward.device import memory
from wholebatch.feedforward.device.dropout import keep_mask
from wholebatch.feedforward.device.engine import DeviceEngine
from wholebatch.feedforward.device.plan import plan_pass
from wholebatch.feedforward.device.replays import WARM, Replays
from wholebatch.feedforward.device.table import Table
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.engine import NonFiniteLossError

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**64 - 1])
@pytest.mark.parametrize("step", [0, 3, 2**32 - 1, 2**32 + 1])
def test_masks_are_those_of_the_other_engines(seed: int, step: int) -> None:
    for rows, columns, layer, p, first in ((5, 7, 0, 0.3, 0), (3, 4, 2, 0.0, 9), (1, 1, 1, 0.99, 2**31)):
        mask = keep_mask(rows, columns, layer, torch.tensor(step), seed, p, torch.tensor(first))
        assert np.array_equal(mask.numpy(), dropout_mask(rows, columns, layer, step, seed, p, first))


class NoReading(TorchDispatchMode):
    """Fails where a number goes from a tensor to the host, which on a GPU would wait for all that was begun."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"), name
        return func(*args, **(kwargs or {}))


STEPS = [
    ({"norm": "batch", "dropout": 0.2}, Loss("cross_entropy", alpha=0.1, class_weights=(1.0, 2.0, 0.5)), "sgd", False),
    ({"norm": "batch", "activation": "gelu", "momentum": None}, Loss("mse", weigh_moments=True), "adam", True),
    ({"norm": "batch", "norm_position": "after"}, Loss("huber"), "adamw", True),
    ({"norm": "layer"}, Loss("bce", label_smoothing=0.1), "adam", False),
    ({"norm": "rms"}, Loss("cross_entropy", label_smoothing=0.1), "sgd", True),
]


@pytest.mark.parametrize(("build", "loss", "kind", "weighted"), STEPS)
def test_a_step_reads_no_number(build: dict[str, Any], loss: Loss, kind: Any, weighted: bool) -> None:
    model = FeedForward(6, (17, 9), 3, **build)
    optimizer = Optimizer(kind, 0.01, momentum=0.9 if kind == "sgd" else 0.0, max_grad_norm=1.0)
    engine, data = DeviceEngine(model, loss, optimizer, device="cpu"), make_data(model, loss, 40, weighted=weighted)
    with engine._working():
        engine._begin(data, np.arange(40), np.array([0, 40]), np.full(1, 0.01), None)
        engine._load_state()
        before = engine._parameters.flat.clone()
        with NoReading():
            engine._step((40,), update=True)
        assert not torch.equal(before, engine._parameters.flat)


@pytest.mark.parametrize(("build", "loss", "kind", "weighted"), [case for case in STEPS if case[2] != "sgd"])
def test_a_step_takes_nothing_from_the_host(
    build: dict[str, Any], loss: Loss, kind: Any, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without memory: whatever is read from it, or comes from the CPU in the midst of a step, fails."""
    model = FeedForward(6, (17, 9), 3, **build)
    data = make_data(model, loss, 40, weighted=weighted)
    monkeypatch.setattr(Table, "_move", lambda self, device, peers: torch.zeros(6, device=device))
    engine = DeviceEngine(model, loss, Optimizer(kind, 0.01, eps_hat=True), device="meta")
    with engine._working():
        engine._begin(data, np.arange(40), np.array([0, 40]), np.full(1, 0.01), None)
        engine._step((40,), update=True)
    assert engine._course.losses.is_meta


@pytest.mark.parametrize("look", [0.0, 1e9])
def test_a_loss_that_is_not_finite_is_found_late_and_named_right(look: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the third of four mini-batches: at the next look, or at the end, when the fourth was trained on too."""
    monkeypatch.setattr(device_engine, "LOOK_SECONDS", look)
    model = FeedForward(1, (4,), 1, norm="none", activation="identity")
    y = np.ones((40, 1))
    y[25] = 1e30
    loss = Loss("mse")
    engine = DeviceEngine(model, loss, Optimizer("sgd", 0.0), device="cpu")
    data = Data(np.ones((40, 1), np.float32), y.astype(np.float32))
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError) as error:
        engine.train_epoch(data, np.arange(40), np.arange(0, 41, 10), np.zeros(4))
    assert (error.value.step, error.value.layer) == (3, 2)
    assert same(copy_of(model), before)
    assert engine.step == 0


def test_progress_is_told_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_engine, "LOOK_SECONDS", 0.0)
    told: list[tuple[int, int, float]] = []
    history = net().fit(
        X, Y, training=Training(epochs=1, batch_size=20), engine="device", progress=lambda *of: told.append(of)
    )
    assert [done for _, done, _ in told] == [20, 40, 60, 80, 90]
    assert told[-1][2] == pytest.approx(history.epochs[0]["loss"], rel=1e-15)


def test_a_table_is_laid_down_once_and_again_for_another() -> None:
    loss = Loss("cross_entropy")
    model = make_model((6, 9, 3), "batch", "before", "tanh", dtype=torch.float64)
    engine = DeviceEngine(model, loss, Optimizer("sgd", 0.1), device="cpu")
    tables = []
    data = make_data(model, loss, 20)
    for each in (data, data, make_data(model, loss, 30)):
        rows = len(each)
        engine.train_epoch(each, np.arange(rows), np.array([0, rows]), np.full(1, 0.1))
        tables.append(engine._table)
    assert tables[0] is tables[1]
    assert tables[1] is not tables[2]


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_columns_far_from_zero_are_moved_and_the_persons_table_is_not(mean: float) -> None:
    x = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    x[:, 2] += mean
    kept, data = x.copy(), Data(x, np.zeros(50, np.int64))
    table = Table(data, CPU, centred=True)
    assert np.array_equal(x, kept)
    assert (table.centre is None) == (mean == 0)
    if table.centre is not None:
        assert table.centre.numpy() == pytest.approx(x.mean(0, dtype=np.float64), rel=1e-6, abs=1e-6)
        assert float(table.x.mean(0).abs().max()) <= 1e-3  # what float32 keeps of 1e4
    assert Table(data, CPU, centred=False).centre is None


def test_a_sparse_table_is_laid_down_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wholebatch.feedforward.device.table.BLOCK_BYTES", 8 * 33 * 7)
    sparse = scipy.sparse.random_array((50, 33), density=0.2, rng=np.random.default_rng(0), format="csr")
    table = Table(Data(sparse, np.zeros(50, np.int64)), CPU, centred=False)
    assert np.array_equal(table.x.numpy(), sparse.toarray())


def test_what_does_not_fit_on_a_card_is_told_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 << 20)
    card = torch.device("cuda", 0)
    memory.check_room(card, 10 << 20, "the table")
    wanted = (
        r"the table of 1 row needs 10,485,761 bytes .* on cuda:0, 10,485,760 bytes .* are free there; train on the CPU"
    )
    with pytest.raises(ValueError, match=wanted):
        memory.check_room(card, (10 << 20) + 1, "the table of 1 row")


class Graph:
    """Stands in for a CUDA graph: of a step it keeps nothing but that it was captured, and how often it was run."""

    made: list[Graph]

    def __init__(self) -> None:
        self.replayed = 0
        Graph.made.append(self)

    def replay(self) -> None:
        self.replayed += 1


@contextmanager
def capture(graph: Graph, **how: Any) -> Iterator[None]:
    yield


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Replays]:
    Graph.made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return lambda **how: Replays(torch.device("cuda", 0), **how)


def test_steps_of_a_size_are_captured_once_and_replayed(replays: Callable[..., Replays]) -> None:
    """Three as they are, one captured and replayed at once, then replays alone; another size begins anew."""
    ran: list[int] = []
    found = replays()
    for _ in range(WARM + 4):
        found.run((8,), lambda: ran.append(8))
    assert len(ran) == WARM + 1
    assert [graph.replayed for graph in Graph.made] == [4]
    for _ in range(WARM + 1):
        found.run((3,), lambda: ran.append(3))
    assert ran.count(3) == WARM + 1
    assert [graph.replayed for graph in Graph.made] == [4, 1]
    found.forget()
    found.run((8,), lambda: ran.append(8))
    assert ran[-1] == 8
    assert len(Graph.made) == 2


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_graphs_can_be_turned_off(how: str, replays: Callable[..., Replays], monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("WHOLEBATCH_CUDA_GRAPHS", "0")
    found, ran = replays(graphs=how == "environment"), []
    for _ in range(WARM + 4):
        found.run((8,), lambda: ran.append(8))
    assert len(ran) == WARM + 4
    assert not Graph.made
    assert not Replays(CPU).enabled


def test_what_steps_read_stays_where_it_is_from_epoch_to_epoch() -> None:
    """A graph reads addresses: they may change with the table, and with the number of steps, and then only."""
    loss, model = Loss("cross_entropy"), net(dropout=0.2)
    engine = DeviceEngine(model, loss, Optimizer("adam", 0.01), device="cpu")
    data = make_data(model, loss, 40)

    def run(batch: int) -> list[int]:
        offsets = np.arange(0, 41, batch)
        engine.train_epoch(data, np.random.default_rng(batch).permutation(40), offsets, np.full(len(offsets) - 1, 0.01))
        assert engine._table is not None
        kept = [engine._table.x, engine._parameters.flat, engine._parameters.total, engine._update.rate]
        kept += [*engine._update.states.values(), *engine._parameters.running.values(), engine._course.place]
        return [tensor.data_ptr() for tensor in (*kept, *engine._course._whole.values())]

    first = run(10)
    engine.optimizer_state = {name: state.clone() for name, state in engine.optimizer_state.items()}
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    assert run(10) == first
    assert run(20)[:-5] == first[:-5]


@pytest.mark.parametrize(
    ("build", "more", "why"),
    [
        ({}, {"shards": 2}, "the mini-batch is in 2 shards"),
        ({}, {"weighted": True}, "sample weights weigh the moments"),
        ({}, {"precision": "medium"}, "matmul_precision is 'medium'"),
        ({"activation": "gelu"}, {}, "the kernels do not take gelu along"),
        ({"dropout": 0.1}, {}, "dropout needs each layer's output"),
        ({"norm": "layer"}, {}, "no batch norm right behind the sums"),
        ({"norm_position": "after"}, {}, "no batch norm right behind the sums"),
        ({"momentum": None}, {}, "momentum=None"),
        ({}, {}, "Triton's kernels do not serve torch.float32 on cpu here"),
    ],
)
def test_why_a_net_goes_layer_by_layer(build: dict[str, Any], more: dict[str, Any], why: str) -> None:
    model = FeedForward(6, (4,), 2, **build)
    how = {"shards": 1, "weighted": False, "precision": "highest", **more}
    plan = plan_pass(model.architecture, model.layers[0].weight, **how)  # type: ignore[arg-type]
    assert not plan.fused
    assert why in plan.why


def test_a_net_and_its_device_have_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    model = net()
    before = copy_of(model)
    for settings, said in (
        ({"device": "cuda"}, "device is 'cuda', and torch sees no GPU here"),
        ({"device": "gpu"}, "device is 'gpu'; choose 'cpu', 'cuda'"),
        ({"device": "mps"}, "device is 'mps'; nets are trained on 'cpu' or 'cuda'"),
    ):
        with pytest.raises(ValueError, match=said):
            model.fit(X, Y, **settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"engine 'native' computes on the CPU, and device is 'cuda'; choose engine"):
        model.fit(X, Y, device="cuda", engine="native")
    with pytest.raises(ValueError, match=r"device is 'cuda:3', and torch sees 1 GPUs"):
        model.fit(X, Y, device="cuda:3")
    assert same(copy_of(model), before)
