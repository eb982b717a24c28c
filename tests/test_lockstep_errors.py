"""Parts that cannot meet, and parts that fail: an error at once, and nothing changed."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import wholebatch
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting


class Two(nn.Module):
    """Two batch norms of the same class and size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = wholebatch.BatchNorm1d(3), wholebatch.BatchNorm1d(3), wholebatch.BatchNorm1d(4)


def state(net: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(net.state_dict())


def assert_unchanged(net: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def work(net: Two, x: Tensor, order: str) -> Tensor:
    for name in order:
        x = net.get_submodule(name)(x)
    return x


@pytest.mark.parametrize(
    ("orders", "cause"),
    [
        (["ab", "ab", "ba"], "part 2 came with a different layer than part 0"),
        (["aba", "aba", "ab"], "part 2 returned, and others wait at one more batch norm"),
        (["a", "ab", "ab"], "part 0 returned"),
        (["", "a", ""], "parts 0, 2 returned"),
    ],
)
def test_a_different_order_or_number_is_told_with_where_each_part_stands(orders: list[str], cause: str) -> None:
    net = Two()
    before = state(net)
    parts = [(net, torch.randn(4 + part, 3), order) for part, order in enumerate(orders)]
    with pytest.raises(wholebatch.LockstepError, match=cause) as caught:
        wholebatch.lockstep(work, parts)
    assert_unchanged(net, before)
    assert [position.part for position in caught.value.positions] == [0, 1, 2]
    lines = str(caught.value).splitlines()
    assert len(lines) == 6  # cause, heads, three parts, remedy
    for part, line in enumerate(lines[2:5]):
        assert line.startswith(f"{part} ")
        assert ("has returned" in line) != ("waits there" in line)
        if orders[part]:
            assert f"({4 + part}, 3) float32" in line
    assert "same batch norms in the same order" in lines[5]


def test_a_different_number_of_channels_or_dtype_is_told() -> None:
    norm = wholebatch.functional.batch_norm
    with pytest.raises(wholebatch.LockstepError, match="number of channels"):
        wholebatch.lockstep(lambda x: norm(x, None, None, training=True), [torch.randn(4, 3), torch.randn(4, 2)])
    with pytest.raises(wholebatch.LockstepError, match="dtype"):
        wholebatch.lockstep(
            lambda x: norm(x, None, None, training=True), [torch.randn(4, 3), torch.randn(4, 3).double()]
        )


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("offload", ["none", "cpu", "recompute"])
def test_an_exception_in_one_part_unwinds_the_others_and_changes_nothing(failing: int, offload: str) -> None:
    net = Two()
    before, ended, random = state(net), [], torch.get_rng_state()

    def fail(part: int, x: Tensor) -> Tensor:
        with torch.no_grad():
            try:
                x = net.b(net.a(x))
                if part == failing:
                    raise KeyError("this one")
                return net.a(x)
            finally:
                ended.append(part)
                with contextlib.suppress(Exception):
                    net.a(x)  # unwinding passes no batch norm any more

    parts = [(part, torch.randn(4, 3)) for part in range(3)]
    with pytest.raises(KeyError, match="this one") as caught:
        wholebatch.lockstep(fail, parts, offload=offload)  # type: ignore[arg-type]
    assert f"raised in part {failing} of 3" in caught.value.__notes__[0]
    assert sorted(ended) == [0, 1, 2]
    assert torch.is_grad_enabled()
    assert_unchanged(net, before)
    torch.set_rng_state(random)


def test_what_unwinding_raises_is_noted() -> None:
    net = Two()

    def fail(part: int, x: Tensor) -> Tensor:
        try:
            x = net.a(x)
            if part == 1:
                raise KeyError("first")
            return net.b(x)
        finally:
            if part == 0:
                raise ValueError("second")

    with pytest.raises(KeyError, match="first") as caught:
        wholebatch.lockstep(fail, [(0, torch.randn(4, 3)), (1, torch.randn(4, 3))])
    assert any("unwinding part 0 raised ValueError: second" in note for note in caught.value.__notes__)


def test_nothing_holds_the_parts_after_a_failure() -> None:
    class Thing: ...

    things: list[weakref.ref[Thing]] = []
    net = Two()

    def fail(part: int, x: Tensor) -> Tensor:
        thing = Thing()
        things.append(weakref.ref(thing))
        x = net.a(x)
        if part == 1:
            raise KeyError(part)
        return net.b(x)

    with pytest.raises(KeyError):
        wholebatch.lockstep(fail, [(part, torch.randn(4, 3)) for part in range(3)])
    gc.collect()
    assert [thing() for thing in things] == [None, None, None]


class Breaking:
    """A sharing whose meeting fails."""

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        raise ConnectionError(f"nobody came to {meeting.layer}")

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        raise AssertionError


def test_a_meeting_that_fails_is_raised_where_the_model_waits() -> None:
    net = Two()
    net.b.process_group = Breaking()
    before = state(net)

    def pass_both(x: Tensor) -> Tensor:
        return net.b(net.a(x))

    with pytest.raises(ConnectionError, match="nobody came") as caught:
        wholebatch.lockstep(pass_both, torch.randn(6, 3).split(2))
    assert "pass_both" in [entry.name for entry in caught.traceback]
    assert_unchanged(net, before)


def test_one_value_per_channel_is_refused_as_undivided() -> None:
    net = Two()
    before = state(net)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        wholebatch.lockstep(net.a, [torch.randn(1, 3), torch.randn(0, 3)])
    assert_unchanged(net, before)
    wholebatch.lockstep(net.a, [torch.randn(0, 3), torch.randn(0, 3)])  # nothing at all moves nothing
    assert torch.equal(net.a.running_mean, before["a.running_mean"])


def test_lockstep_inside_of_lockstep_is_refused() -> None:
    net = Two()
    with pytest.raises(RuntimeError, match="lockstep inside of a part"):
        wholebatch.lockstep(lambda x: wholebatch.lockstep(net.a, [x]), [torch.randn(4, 3)])


def test_batch_norms_of_others_are_named_or_converted() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.BatchNorm1d(4)), nn.BatchNorm1d(4).eval())
    x = torch.randn(6, 3)
    with pytest.raises(TypeError, match=r"1 \(BatchNorm1d\), 2\.0 \(BatchNorm1d\); pass convert=True"):
        wholebatch.lockstep(net, x.split(3))
    with pytest.raises(TypeError, match=r"BatchNorm1d\(4"):
        wholebatch.lockstep(lambda x: net(x), x.split(3))
    with pytest.raises(TypeError, match="convert=True takes"):
        wholebatch.lockstep(lambda x: net(x), x.split(3), convert=True)
    assert all(torch.equal(m.running_mean, torch.zeros(4)) for m in net.modules() if isinstance(m, nn.BatchNorm1d))
    reference = copy.deepcopy(net)
    outputs = wholebatch.lockstep(net, x.split([4, 2]), convert=True)
    # float32: some hundred roundings of 6e-8
    torch.testing.assert_close(torch.cat(outputs), reference(x), rtol=1e-5, atol=1e-5)
    wholebatch.lockstep(lambda x: net(x), x.split(3))
    wholebatch.lockstep(nn.Sequential(nn.BatchNorm1d(3)).eval(), x.split(3))  # which takes no statistics


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="no parts"):
        wholebatch.lockstep(nn.Identity(), [])
    with pytest.raises(ValueError, match="'none', 'cpu', 'recompute'"):
        wholebatch.lockstep(nn.Identity(), [torch.zeros(1)], offload="disk")  # type: ignore[arg-type]
