"""The modes of memory: the same numbers, and the peak of what lives on the device."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

import wholebatch
from test_lockstep import SIZES, Net, assert_same, compare, draw
from wholebatch.microbatches import host, parking
from wholebatch.microbatches.offload import Offload

MODES: list[Offload] = ["none", "cpu", "recompute"]
# Of the parts in these tests most storages are larger than what offload="cpu" lets stay.
LARGE = 12


@pytest.mark.parametrize("offload", MODES[1:])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_modes_change_no_number(offload: Offload, sizes: list[int]) -> None:
    compare(Net(), 100 + draw(23, 3, LARGE, LARGE), sizes, offload=offload)


@pytest.mark.parametrize("offload", MODES[1:])
def test_the_modes_have_the_bits_of_none(offload: Offload) -> None:
    x = draw(12, 3, LARGE, LARGE)

    def train(offload: Offload) -> list[Tensor]:
        net = Net()
        outputs = wholebatch.lockstep(net, x.split([5, 4, 3]), offload=offload)
        torch.cat(outputs).square().sum().backward()
        return [*outputs, *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]

    assert all(torch.equal(a, b) for a, b in zip(train(offload), train("none"), strict=True))


class Awkward(nn.Module):
    """Changes in place of all kinds, views, pieces, dropout, pooling, tensors that pass several batch norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.a, self.b, self.c = (wholebatch.BatchNorm2d(8) for _ in range(3))
        self.frozen, self.pool, self.drop = wholebatch.BatchNorm2d(8).eval(), nn.MaxPool2d(2), nn.Dropout(0.3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x).tanh()
        total = skip.detach().clone()
        h = self.a(self.second(skip))
        total += h.detach()  # it has waited, waits again, and is another one then
        h = nn.functional.relu(h, inplace=True)
        h = h + skip
        h += skip
        h[:, :4].mul_(0.5)  # a part of it
        h = self.drop(self.frozen(h)) + skip.sigmoid()
        left, right = self.second(h).chunk(2, 1)
        h = self.b(torch.cat([(right + 1).sigmoid_(), left.mT], 1))
        skip = skip.clone().mul_(h) * total.sigmoid() * torch.rand_like(h)
        total -= 1  # whose sigmoid is needed as it was
        h = self.pool(self.c(self.second(h.sin().add_(skip).tanh_())) + h)
        return h.flatten(1)[:, ::3].square().mean(1)


@pytest.mark.parametrize("offload", MODES[1:])
def test_changes_in_place_views_and_dropout(offload: Offload) -> None:
    def train(offload: Offload) -> list[Tensor]:
        torch.manual_seed(3)
        net, x = Awkward(), draw(9, 3, LARGE, LARGE).requires_grad_()
        y = torch.cat(wholebatch.lockstep(net, x.split([4, 3, 2]), offload=offload))
        y.sum().backward()
        assert x.grad is not None
        return [y, x.grad, *(p.grad for p in net.parameters() if p.grad is not None), *net.buffers()]

    ours, theirs = train(offload), train("none")
    assert len(ours) > 15
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("offload", MODES[1:])
def test_outputs_of_a_mebibyte_and_more(offload: Offload) -> None:
    """The compiled kernels use large outputs' memory again, so that an address says nothing of contents."""
    net = nn.Sequential(
        wholebatch.BatchNorm2d(8), wholebatch.BatchNorm2d(8, activation="relu"), nn.Tanh(), wholebatch.BatchNorm2d(8)
    )
    x = torch.randn(12, 8, 96, 96)  # 1.1 MiB for each part of 4 rows

    def train(offload: Offload) -> list[Tensor]:
        model = copy.deepcopy(net)
        outputs: list[Tensor] = []
        for _ in range(2):
            outputs = wholebatch.lockstep(model, x.requires_grad_().split(4), offload=offload)
            torch.cat(outputs).sin().sum().backward()
        return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]

    assert all(torch.equal(a, b) for a, b in zip(train(offload), train("none"), strict=True))


@pytest.mark.parametrize("offload", MODES[1:])
def test_autocast_casts_a_weight_once_for_all_parts(offload: Offload) -> None:
    """One part's storage that all use: it must not be emptied while that one waits."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), wholebatch.BatchNorm1d(64), nn.Linear(64, 64), wholebatch.BatchNorm1d(64))
    x = torch.randn(96, 64)

    def train(offload: Offload) -> list[Tensor]:
        model = copy.deepcopy(net)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = wholebatch.lockstep(lambda x: model[2](model(x)), x.split(32), offload=offload)
        torch.cat(outputs).float().square().sum().backward()
        return [*outputs, *(p.grad for p in model.parameters() if p.grad is not None)]

    assert all(torch.equal(a, b) for a, b in zip(train(offload), train("none"), strict=True))


@pytest.mark.parametrize("offload", MODES[1:])
def test_checkpoints_and_regions_without_gradients(offload: Offload) -> None:
    net = Net()

    def work(x: Tensor) -> Tensor:
        h = checkpoint(net.features, x, use_reentrant=False, context_fn=wholebatch.replay)
        with torch.no_grad():
            goal = net.twice(net.first(x)).sin()
        return ((h - goal) ** 2).flatten(1).mean(1)

    reference = copy.deepcopy(net)
    x = draw(12, 3, LARGE, LARGE)
    torch.cat(wholebatch.lockstep(work, x.split([5, 4, 3]), offload=offload)).sum().backward()
    ours = [p.grad for p in net.parameters()]
    net = reference
    work(x).sum().backward()
    assert_same(ours, [p.grad for p in net.parameters()])


@pytest.mark.parametrize("offload", MODES)
def test_a_saved_tensor_changed_in_place_is_an_error_as_ever(offload: Offload) -> None:
    norm, weight = wholebatch.BatchNorm1d(64), torch.ones(64, 64, requires_grad=True)
    outputs = wholebatch.lockstep(lambda x: norm(x @ weight) @ weight, torch.randn(64, 64).split(32), offload=offload)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|was changed in place"):
        torch.cat(outputs).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's compiler asks for it
@pytest.mark.parametrize("offload", MODES)
def test_compiled_blocks_run_compiled_where_nobody_watches(offload: Offload) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)  # unseen from outside, where it is compiled
            return self.linear(x).tanh()

    runs = 0

    def count_runs(graph: Callable[..., Any], inputs: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal runs
            runs += 1
            return graph(*args)

        return run

    torch._dynamo.reset()
    block = Block().double()
    middle = nn.Linear(64, 64).double()
    plain = nn.Sequential(middle, wholebatch.BatchNorm1d(64).double(), block, wholebatch.BatchNorm1d(64).double())
    net = nn.Sequential(plain[0], plain[1], torch.compile(block, backend=count_runs), plain[3])
    reference = copy.deepcopy(plain)
    x = draw(48, 64)
    net(x)  # compiled before
    for ours, theirs in zip(net.buffers(), reference.buffers(), strict=True):
        ours.copy_(theirs)
    assert runs == 1
    compare(net, x, [20, 16, 12], offload=offload, reference=reference)
    assert runs == (7 if offload == "none" else 1)  # two steps of three parts
    assert torch.utils._python_dispatch._is_in_torch_dispatch_mode is False  # type: ignore[attr-defined]
    torch._dynamo.reset()


class Count(TorchDispatchMode):
    """The most bytes of storages that lived at once after any operation, of those that operations make or read.

    Parked copies are in host memory, and do not count; an emptied storage counts as what it is, nothing. What is loaded
    is counted when it is loaded.
    """

    def __init__(self, ignored: list[Tensor]) -> None:
        super().__init__()
        self.live: dict[int, StorageWeakRef] = {}
        self.ignored = {x.untyped_storage()._cdata for x in ignored}
        self.copies: list[StorageWeakRef] = []
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_iter((args, kwargs, result)):
            if isinstance(x, Tensor):
                self.see(x.untyped_storage())
        return result

    def see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.ignored:
            self.live.setdefault(storage._cdata, StorageWeakRef(storage))
        total = 0
        for key, weak in list(self.live.items()):
            alive = host.reach(weak)
            if alive is None:
                del self.live[key]
            else:
                total += alive.nbytes()
        self.peak = max(self.peak, total)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], Count]:
    counts: list[Count] = []

    class Copy(host.HostCopy):
        def __init__(self, storage: torch.UntypedStorage) -> None:
            super().__init__(storage)
            key = self.bytes.untyped_storage()._cdata
            counts[-1].copies.append(StorageWeakRef(self.bytes.untyped_storage()))  # keeps the address
            counts[-1].ignored.add(key)
            counts[-1].live.pop(key, None)

        def load(self) -> torch.UntypedStorage:
            storage = super().load()
            counts[-1].see(storage)
            return storage

    def make(ignored: list[Tensor]) -> Count:
        counts.append(Count(ignored))
        return counts[-1]

    monkeypatch.setattr(parking, "HostCopy", Copy)
    return make


def eight_layers() -> nn.Sequential:
    torch.manual_seed(0)
    blocks: list[nn.Module] = []
    for layer in range(8):
        blocks += [nn.Conv2d(16 if layer else 3, 16, 3, padding=1), wholebatch.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))


def test_peak_memory_of_each_mode(count: Callable[[list[Tensor]], Count]) -> None:
    """In units of one activation of the whole mini-batch: 8 layers of convolution, norm and ReLU."""
    x = torch.randn(64, 3, 16, 16)
    unit = 64 * 16 * 16 * 16 * 4

    def measure(parts: int, offload: Offload) -> tuple[float, float]:
        net = eight_layers()
        counting = count([*net.parameters(), *net.buffers(), x])
        with counting:
            outputs = wholebatch.lockstep(net, x.chunk(parts), offload=offload)
            forward, counting.peak = counting.peak, 0
            torch.cat(outputs).square().sum().backward()
        return forward / unit, counting.peak / unit

    undivided = measure(1, "none")
    assert undivided[0] == pytest.approx(17, abs=0.5)  # z and y of 8 layers, and what the pooling takes
    assert max(undivided) < 20
    assert max(measure(8, "none")) == pytest.approx(16.2, abs=0.5)  # without the loss's end it holds all, too
    assert max(measure(8, "recompute")) < 10  # z of 8 layers, and one gradient
    peaks = [max(measure(parts, "cpu")) for parts in (4, 8, 16, 32)]
    assert peaks[1] <= 1.2
    # A part's section of the net at once, forward or backward: 4 activations of a part, and the weights' gradients,
    # once accumulated and once as they come.
    weights = 2 * sum(p.numel() * 4 for p in eight_layers().parameters()) / unit
    assert all(peak <= 4 / parts + weights for peak, parts in zip(peaks, (4, 8, 16, 32), strict=True)), peaks


@pytest.mark.parametrize("offload", MODES)
def test_everything_goes_with_the_graph(offload: Offload) -> None:
    gc.collect()
    gc.disable()
    try:
        net, x = eight_layers(), torch.randn(8, 3, 16, 16)
        counting = Count([*net.parameters(), *net.buffers(), x])
        with counting:
            outputs = wholebatch.lockstep(net, x.chunk(4), offload=offload)
            torch.cat(outputs).square().sum().backward()
            del outputs
            counting.ignored.update(p.grad.untyped_storage()._cdata for p in net.parameters() if p.grad is not None)
            left = [storage for weak in counting.live.values() if (storage := host.reach(weak)) is not None]
            large = [s.nbytes() for s in left if s._cdata not in counting.ignored and s.nbytes() >= 2 * 16 * 256]
        assert large == []
    finally:
        gc.enable()


@pytest.mark.parametrize("offload", MODES)
@pytest.mark.parametrize("channels", [511, 512, 2048])
def test_many_channels(offload: Offload, channels: int) -> None:
    # From 512 on a part's moments are as large as what is put aside, and the meeting still reads them.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, channels, bias=False), wholebatch.BatchNorm1d(channels)).double()
    x, twin = torch.randn(16, 8, dtype=torch.float64), copy.deepcopy(net)
    torch.cat(wholebatch.lockstep(net, x.split(5), offload=offload)).square().sum().backward()
    twin(x).square().sum().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
