"""Where ``save="input"`` is in force: next to other hooks, checkpoints, threads, compilers and sharding."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
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
from torch.utils.checkpoint import checkpoint

import wholebatch
from ranks import run_ranks
from saved_inputs import Applied, Layer, Net, assert_equal, draw, train
from wholebatch.recomputing import attach_scope, detach_scope
from wholebatch.recomputing.scope import _tell_old_torch


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


def train_sharded_both_ways(rank: int) -> list[list[Tensor]]:
    return [train_sharded(rank, save) for save in ("input", None)]


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
    for outcome in run_ranks(train_sharded_both_ways, 2):
        assert_equal(*outcome.value)


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
