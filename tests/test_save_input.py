"""``save="input"``: half the memory between forward and backward, and not a bit of any gradient changed."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import wholebatch
from ranks import run_ranks
from wholebatch.recomputing import _tell_old_torch, attach_scope, detach_scope

Layer = partial(wholebatch.BatchNorm2d, 4)


class Held(TorchDispatchMode):
    """Counts the bytes of the storages made within that are alive; what was there before does not count."""

    def __init__(self, *before: Tensor) -> None:
        super().__init__()
        self.before = {x.untyped_storage()._cdata for x in before}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.before:
                reference = StorageWeakRef(leaf.untyped_storage())
                self.made[reference.cdata] = reference, leaf.untyped_storage().nbytes()
        return result

    def bytes(self, at_least: int = 0) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired() and size >= at_least)


class Applied:
    """Counts how often outputs of batch norm are formed again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from wholebatch.recomputing import _Plan

        self.count, make = 0, _Plan.make

        def counted(plan: Any, *args: Any) -> Tensor:
            before, y = plan.made, make(plan, *args)
            self.count += plan.made is not before
            return y

        monkeypatch.setattr(_Plan, "make", counted)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def chain(save: Any, layers: int = 8, **keywords: Any) -> nn.Sequential:
    torch.manual_seed(0)
    conv = partial(nn.Conv2d, 4, 4, 3, padding=1, bias=False)
    return nn.Sequential(*[m for _ in range(layers) for m in (conv(), Layer(save=save, activation="relu", **keywords))])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_eight_layers_hold_eight_activations_and_not_fifteen(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = draw(2, 4, 8, 8, dtype=dtype).to(memory_format=layout)
    one, held, gradients = x.nbytes, {}, {}
    for save in (None, "input"):
        net = chain(save).to(dtype)
        with Held(x, *net.parameters(), *net.buffers()) as counted:
            with wholebatch.saving_inputs():
                y = net(x)
            loss = y.square().sum()
            del y  # the loss holds it
            held[save] = counted.bytes(at_least=one)
            loss.backward()
        gradients[save] = [p.grad for p in net.parameters()]
    # 8 inputs of batch norm, the last output and, without it, 7 outputs that the next convolution saves.
    assert held == {None: 16 * one, "input": 9 * one}
    assert all(map(torch.equal, gradients[None], gradients["input"]))


class Net(nn.Module):
    """What may come after a layer: convolutions, views, several users, activations of all kinds, residuals, masks."""

    def __init__(self, save: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        activations = ["relu", nn.LeakyReLU(0.2), None, "gelu", "relu", "relu", None, "relu"]
        self.norms = nn.ModuleList(Layer(save=save, activation=activation) for activation in activations)
        self.frozen = Layer(save=save, activation="relu").eval()
        self.head = nn.Linear(4 * 36, 3)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        n, (a, b, c, d) = self.norms, self.convs
        h = n[0](a(x))
        h = n[1](b(h)) * h  # two users
        h = self.inplace(n[2](c(h)))
        h = n[3](d(h))
        h = self.frozen(a(h))
        h = n[4](b(h), h)  # a chain of residuals
        h = n[5](c(h), h)
        h = n[6](d(h), h)
        k = a(h)
        h = n[7](n[0](k), k)  # batch norm of batch norm
        part = h[:, 1:3].transpose(2, 3) @ h[:, :2]  # views
        h = n[1](part.repeat(1, 2, 1, 1), mask=x[:, 0] > -1)
        return self.head(h.flatten(1))


def train(
    save: Any,
    dtype: torch.dtype = torch.float32,
    scope: Callable[[], AbstractContextManager[Any]] = wholebatch.saving_inputs,
    backwards: int = 1,
    call: Callable[[nn.Module, Tensor], Tensor] = lambda net, x: net(x),
    net: nn.Module | None = None,
) -> list[Tensor]:
    net, x = net or Net(save).to(dtype), draw(3, 4, 6, 6, dtype=dtype).requires_grad_()
    with scope():
        y = call(net, x)
    for again in reversed(range(backwards)):
        y.square().sum().backward(retain_graph=again > 0)
    return [y, x.grad, *[p.grad for p in net.parameters()], *net.buffers()]  # type: ignore[list-item]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_are_the_same_to_the_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, applied = train(None, dtype), Applied(monkeypatch)
    assert_equal(train("input", dtype), expected)
    assert applied.count > 8
    assert_equal(train("input", dtype, scope=nullcontext), expected)


def test_a_retained_graph_is_passed_backward_again() -> None:
    assert_equal(train("input", backwards=3), train(None, backwards=3))


def test_it_can_be_differentiated_twice() -> None:
    def differentiate(save: Any) -> list[Tensor]:
        net, x = Net(save).double(), draw(3, 4, 6, 6, dtype=torch.float64).requires_grad_()
        with wholebatch.saving_inputs():
            y = net(x)
            (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return [slope, *torch.autograd.grad(slope.square().sum(), [x, *net.parameters()])]

    assert_equal(differentiate("input"), differentiate(None))


def test_under_autocast() -> None:
    def call(net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    assert_equal(train("input", call=call), train(None, call=call))


def test_an_output_with_two_users_at_once_is_formed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    applied, x = Applied(monkeypatch), draw(3, 4, 2, 2).requires_grad_()
    with wholebatch.saving_inputs():
        y = Layer(save="input")(x * 1)
        z = y * y
        del y
    z.sum().backward()
    assert applied.count == 1


def test_a_chain_of_residuals_costs_each_output_a_bounded_number_of_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formed each from the one before, 16 blocks would take more than a hundred passes, and their square."""
    applied, blocks = Applied(monkeypatch), 16
    x = draw(2, 4, 4, 4)
    held, gradients = {}, {}
    for save in (None, "input"):
        torch.manual_seed(0)
        net = nn.ModuleList(m for _ in range(blocks) for m in (nn.Conv2d(4, 4, 1), Layer(save=save, activation="relu")))
        with Held(x, *net.parameters(), *net.buffers()) as counted:
            with wholebatch.saving_inputs():
                h = x
                for conv, norm in zip(net[::2], net[1::2], strict=True):
                    h = norm(conv(h), h)
                loss = h.sum()
            del h
            held[save] = counted.bytes(at_least=x.nbytes) // x.nbytes
            loss.backward()
        gradients[save] = [p.grad for p in net.parameters()]
    assert_equal(gradients["input"], gradients[None])
    # Of the outputs that are residuals of the next block every second one is kept.
    assert held == {None: 2 * blocks - 1, "input": blocks + blocks // 2 - 1}
    assert 0 < applied.count <= 3 * blocks


@pytest.mark.parametrize("which", ["weight", "input", "kept"])
def test_a_change_in_place_is_told_as_without(which: str) -> None:
    for scope, message in [(nullcontext, "modified by an inplace operation"), (wholebatch.saving_inputs, "clone it")]:
        layer, conv = Layer(save="input"), nn.Conv2d(4, 4, 1)
        x = draw(3, 4, 2, 2).requires_grad_() * 1
        with scope():
            y = conv(layer(x)).sigmoid()
        with torch.no_grad():
            {"weight": layer.weight, "input": x, "kept": y}[which].add_(1)
        with pytest.raises(RuntimeError, match=message):
            y.sum().backward()


def test_an_output_may_be_changed_once_a_recipe_stands_for_it() -> None:
    found = []
    for change in (False, True):
        torch.manual_seed(0)
        layer, conv = Layer(save="input"), nn.Conv2d(4, 4, 1)
        with wholebatch.saving_inputs():
            y = layer(draw(3, 4, 2, 2))
            loss = conv(y).square().sum()
            if change:
                y.add_(1)
        loss.backward()
        found.append([p.grad for p in (*layer.parameters(), *conv.parameters())])
    assert_equal(found[1], found[0])


def test_nothing_outlives_the_graph() -> None:
    x = draw(2, 4, 8, 8)
    net, one, two = Net("input"), Layer(save="input"), Layer(save="input")

    def call(x: Tensor) -> Tensor:
        z = net.convs[0](x)
        # Outputs whose residual is their own input, or made from it: plans that hold each other would stay.
        return net(x).sum() + one(two(z) * 1, z).sin().sum() + one(z, z).sin().sum() + one(z, two(z)).sin().sum()

    gc.disable()  # by counting references alone, without waiting for the collector
    try:
        for passed_backward in (True, False):
            with wholebatch.saving_inputs(), Held(*net.parameters(), *net.buffers(), x) as counted:
                for _ in range(2):
                    loss = call(x[..., :6, :6].contiguous())
                    assert counted.bytes(at_least=1000) > 0
                    if passed_backward:
                        loss.backward()
                        net.zero_grad(set_to_none=True)
                    del loss
                    assert counted.bytes(at_least=1000) == 0
    finally:
        gc.enable()


def test_what_comes_to_lie_where_an_output_was_is_not_taken_for_it() -> None:
    """The output goes, its plan stays with the graph; were only its address kept, another tensor would get that."""
    layer, x, graphs = Layer(save="input"), draw(3, 4, 2, 2).requires_grad_(), []
    with wholebatch.saving_inputs():
        for _ in range(50):
            graphs.append(layer(x * 1).sum())  # holds the plan, not the output
            other = torch.ones(3, 4, 2, 2).requires_grad_() + 0
            (slope,) = torch.autograd.grad((other * other).sum(), other)
            assert (slope == 2).all()


class Recorded(saved_tensors_hooks):
    """A person's own hooks."""

    def __init__(self) -> None:
        self.packed = self.unpacked = 0

        def pack(x: Tensor) -> Tensor:
            self.packed += 1
            return x.detach()

        def unpack(x: Tensor) -> Tensor:
            self.unpacked += 1
            return x

        super().__init__(pack, unpack)


@pytest.mark.parametrize("hooks", [Recorded, save_on_cpu])
def test_a_persons_own_hooks_stay_in_force_outside_and_inside(hooks: Callable[[], Any]) -> None:
    expected, counts = train(None), []
    for order in ("alone", "outside", "inside"):

        def call(net: nn.Module, x: Tensor, order: str = order) -> Tensor:
            first = hooks()
            scopes = {"outside": [first, wholebatch.saving_inputs()], "inside": [wholebatch.saving_inputs(), first]}
            with ExitStack() as stack:
                for scope in scopes.get(order, [first]):
                    stack.enter_context(scope)
                y: Tensor = net(x)
            counts.append(getattr(first, "packed", 0))
            return y

        assert_equal(train("input", call=call, scope=nullcontext), expected)
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("context_fn", [None, wholebatch.replay])
@pytest.mark.parametrize("outside", [True, False])
def test_with_checkpoints(context_fn: Any, outside: bool) -> None:
    keywords: dict[str, Any] = {"use_reentrant": False} | ({"context_fn": context_fn} if context_fn else {})

    def call(net: nn.Module, x: Tensor) -> Tensor:
        if outside:
            return checkpoint(net, x, **keywords)

        def within(x: Tensor) -> Tensor:
            with wholebatch.saving_inputs():
                return net(x)

        return checkpoint(within, x, **keywords)

    found = train("input", call=call, scope=wholebatch.saving_inputs if outside else nullcontext)
    expected = train(None)
    if context_fn is None:  # then statistics move twice, with a checkpoint alone
        parameters = len(list(Net(None).parameters())) + 2
        found, expected = found[:parameters], expected[:parameters]
    assert_equal(found, expected)


def test_scopes_nest_and_threads_have_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, applied, found = train(None), Applied(monkeypatch), {}
    nets = [Net("input"), Net("input")]

    def call(net: nn.Module, x: Tensor) -> Tensor:
        with wholebatch.saving_inputs():
            return net(x)

    def work(name: int) -> None:
        found[name] = train("input", call=call, net=nets[name])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for name in range(2):
        assert_equal(found[name], expected)
    assert applied.count > 16


def in_force() -> bool:
    y = torch.ones(1, requires_grad=True).exp().square()
    try:  # torch says so of what was saved under hooks
        y.grad_fn._raw_saved_self.register_hooks(lambda x: x, lambda x: x)  # type: ignore[union-attr]
    except RuntimeError:
        return True
    return False


class Looking(nn.Module):
    """Tells whether hooks are in force in its forward; calls another module, or raises."""

    def __init__(self, then: nn.Module | None = None, error: type[Exception] | None = None) -> None:
        super().__init__()
        self.then, self.error, self.saw = then, error, False

    def forward(self, x: Tensor) -> Tensor:
        self.saw = in_force()
        if self.error:
            raise self.error
        return x if self.then is None else self.then(x)


def test_a_scope_on_a_model_opens_with_each_call_and_closes_however_that_ends() -> None:
    inner = Looking(error=LookupError)
    model = Looking(then=inner)
    for attached in (model, inner, model):
        attach_scope(attached)
    with pytest.raises(LookupError):
        model(torch.ones(1))
    assert model.saw
    assert inner.saw
    assert not in_force()
    inner.error = None
    model(torch.ones(1))
    assert not in_force()

    def refuse(*_: object) -> None:
        raise LookupError

    # Raised before the scope of the inner model opens: what closes then must not be the outer one's.
    inner.register_forward_pre_hook(refuse, prepend=True)
    survived = Looking(then=None)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.survived = inner, survived

        def forward(self, x: Tensor) -> Tensor:
            with pytest.raises(LookupError):
                self.inner(x)
            return self.survived(x)

    both = Both()
    attach_scope(both)
    both(torch.ones(1))
    assert survived.saw
    assert not in_force()
    assert detach_scope(both)
    assert not detach_scope(both)
    both(torch.ones(1))
    assert not survived.saw
    assert not both._forward_hooks
    assert not both._forward_pre_hooks
    assert not both._forward_hooks_always_called


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_scope(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = Looking()
    attach_scope(model)
    other = copied(model)
    other(torch.ones(1))
    assert other.saw
    assert not model.saw
    assert not in_force()


def test_convert_puts_a_scope_around_the_model_and_revert_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    applied, x = Applied(monkeypatch), draw(2, 3, 6, 6)
    torch.manual_seed(0)
    block = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    model = nn.Sequential(*block, *copy.deepcopy(block), nn.Conv2d(3, 3, 1))
    wholebatch.convert(model, save="input")
    wholebatch.convert(model, activation=True)
    model(x).sum().backward()
    assert applied.count == 2
    wholebatch.revert(model)
    model(x).sum().backward()
    assert applied.count == 2
    assert not model._forward_hooks


def test_compiled_models_are_as_ever() -> None:
    expected = train(None)

    def call(net: nn.Module, x: Tensor) -> Tensor:
        attach_scope(net)
        return torch.compile(net, backend="aot_eager")(x)  # type: ignore[no-any-return]

    found = train("input", call=call, scope=nullcontext)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)  # other operations, a hundred in a row


def train_sharded(rank: int, save: Any) -> list[Tensor]:
    torch.manual_seed(0)
    block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(nn.Sequential(*block), nn.Sequential(*copy.deepcopy(block)), nn.Conv2d(4, 2, 1))
    wholebatch.convert(model, process_group="world", activation=True, save=save)
    mesh = init_device_mesh("cpu", (2,))
    for part in model[:2]:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(3):
        model(draw(2 + rank, 4, 5, 5, seed=step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)).values())  # type: ignore[arg-type]


def test_sharded_parameters() -> None:
    """Recipes read weight and bias where they lay, and those were gone: gradients were wrong without a word.

    A block's parameters are given back after its forward, and fetched again for its own backward; the next block's
    backward comes before that, and it is there that this block's output is formed again.
    """
    found, expected = ([each.value for each in run_ranks(train_sharded, 2, save)] for save in ("input", None))
    assert_equal(found[0], expected[0])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own use of it
def test_forward_mode_differentiation_in_a_scope() -> None:
    found = []
    for save in (None, "input"):
        layer, x, v = (
            Layer(save=save).double(),
            draw(3, 4, 2, 2, dtype=torch.float64),
            draw(3, 4, 2, 2, seed=1).double(),
        )
        with wholebatch.saving_inputs(), forward_ad.dual_level():
            y = layer(forward_ad.make_dual(x.requires_grad_(), v)).sin()
            found.append(forward_ad.unpack_dual(y).tangent)
    assert torch.equal(*found)
    assert found[0].abs().max() > 0.1


def test_where_torch_takes_no_hooks_it_does_nothing() -> None:
    layer, x = Layer(save="input"), draw(3, 4, 2, 2)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"), wholebatch.saving_inputs():
        F.relu(layer(x)).sum().backward()
    assert layer.weight.grad is not None


def test_an_older_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    _tell_old_torch.cache_clear()
    with (
        pytest.warns(UserWarning, match=r"save='input' spares no memory .* needs torch 2\.8"),
        wholebatch.saving_inputs(),
    ):
        assert not in_force()


def test_an_unknown_save_is_refused() -> None:
    with pytest.raises(ValueError, match="save is 'output'; it must be None or 'input'"):
        wholebatch.functional.batch_norm(draw(3, 4), None, None, training=True, save="output")  # type: ignore[arg-type]
