"""The memory of large outputs is used again, never while anyone can still see it, and within its bound."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from tests.programs import run
from wholebatch.kernels import native_available
from wholebatch.kernels.batch_norm import Affine, Native
from wholebatch.kernels.batch_norm.outputs import LEAST, MEBI, Outputs, outputs

pytestmark = pytest.mark.skipif(not native_available(), reason="the compiled part is missing here")
LIKE = torch.empty(512, 1024)  # 2 MiB


def make(limit: int = 64 * MEBI) -> Outputs:
    return Outputs(limit)


def test_what_was_freed_last_is_used_first() -> None:
    kept = make()
    first, second = kept.like(LIKE), kept.like(LIKE)
    addresses = first.data_ptr(), second.data_ptr()
    assert addresses[0] != addresses[1]
    del first, second
    again = kept.like(LIKE)
    assert again.data_ptr() == addresses[1]
    assert kept.kept() == 4 * MEBI


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_it_is_as_the_tensor_given(dtype: torch.dtype) -> None:
    z = torch.empty(4, 64, 64, 128, dtype=dtype).to(memory_format=torch.channels_last)
    y = make().like(z)
    assert (y.shape, y.stride(), y.dtype, y.storage_offset()) == (z.shape, z.stride(), dtype, 0)


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y,
        lambda y: y[3:5, ::2],
        lambda y: y.untyped_storage(),
        lambda y: y.numpy(),
        lambda y: y.detach(),
        lambda y: torch.from_dlpack(y),
        lambda y: y.requires_grad_().square().grad_fn,
        lambda y: memoryview(y.numpy()),
    ],
    ids=["itself", "a view", "the storage", "numpy", "detached", "dlpack", "saved for backward", "a memoryview"],
)
def test_what_is_still_seen_is_not_given_away(hold: object) -> None:
    kept = make()
    y = kept.like(LIKE)
    address = y.data_ptr()
    held = hold(y)  # type: ignore[operator]
    del y
    others = [kept.like(LIKE) for _ in range(3)]
    assert all(other.data_ptr() != address for other in others)
    del held
    assert kept.like(LIKE).data_ptr() == address


def test_shared_memory_is_not_given_away() -> None:
    """Another process may read it still."""
    kept = make()
    y = kept.like(LIKE).share_memory_()
    address = y.data_ptr()
    del y
    assert kept.like(LIKE).data_ptr() != address


def test_outputs_are_ordinary_tensors() -> None:
    kept = make()
    y = kept.like(LIKE).fill_(2.0)
    stream = io.BytesIO()
    torch.save(y, stream)
    assert len(stream.getvalue()) < y.nbytes + 4096
    stream.seek(0)
    for other in (copy.deepcopy(y), pickle.loads(pickle.dumps(y)), torch.load(stream), y.clone()):
        assert torch.equal(other, y)
        assert other.data_ptr() != y.data_ptr()
    assert y.resize_(2048, 1024).shape == (2048, 1024)
    y.untyped_storage().resize_(0)
    y.untyped_storage().resize_(8 * MEBI)
    assert y.fill_(1.0).sum() == 2048 * 1024


def test_a_storage_that_was_resized_is_told_apart_and_forgotten() -> None:
    kept = make()
    for _ in range(3):
        y = kept.like(LIKE)
        y.untyped_storage().resize_(0)
        del y
        y = kept.like(LIKE)
        assert y.untyped_storage().nbytes() >= y.nbytes
        y.fill_(1.0)
        del y
    assert len(kept._kept) <= 2


def test_no_more_is_kept_than_the_bound() -> None:
    kept = make(5 * MEBI)
    held = [kept.like(LIKE) for _ in range(4)]
    assert kept.kept() == 4 * MEBI  # the third and fourth are torch's own
    assert len({y.data_ptr() for y in held}) == 4
    held.clear()
    larger = kept.like(torch.empty(1024, 1024))  # room is made for it
    assert larger.nbytes == 4 * MEBI
    assert kept.kept() == 4 * MEBI
    assert make(0).like(LIKE).shape == LIKE.shape


def test_another_size_takes_what_is_at_most_an_eighth_larger() -> None:
    kept = make()
    address = kept.like(LIKE).data_ptr()
    assert kept.like(torch.empty(460, 1024)).data_ptr() == address
    assert kept.like(torch.empty(400, 1024)).data_ptr() != address
    assert kept.like(torch.empty(513, 1024)).data_ptr() != address


def test_small_outputs_are_torchs_own() -> None:
    kept = make()
    kept.like(torch.empty(LEAST // 4 - 1))
    assert kept.kept() == 0


def test_clear_leaves_what_is_in_use() -> None:
    kept = make()
    y = kept.like(LIKE).fill_(3.0)
    kept.clear()
    assert kept.kept() == 0
    assert (y == 3).all()


def test_threads_never_share_an_output() -> None:
    kept = make()
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            y = kept.like(LIKE)
            y.fill_(number)
            if not bool((y == number).all()):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def _in_child(y: Tensor, kept: Outputs) -> None:
    again = kept.like(LIKE)
    again.fill_(5.0)
    sys.exit(0 if bool((y == 1).all()) and bool((again == 5).all()) else 1)


def test_a_forked_child_goes_on() -> None:
    kept = make()
    y = kept.like(LIKE).fill_(1.0)
    del_me = kept.like(LIKE)
    del del_me
    with kept._lock:  # as another thread may hold it
        child = multiprocessing.get_context("fork").Process(target=_in_child, args=(y, kept))
        child.start()
    child.join(60)
    assert child.exitcode == 0
    assert (y == 1).all()


def test_the_kernel_uses_them() -> None:
    kernel = Native()
    z = torch.randn(4096, 128)
    before = outputs().kept()
    mean, rstd = torch.zeros(128), torch.ones(128)
    addresses = {kernel.apply(z, mean, rstd, Affine()).data_ptr() for _ in range(5)}
    assert len(addresses) == 1
    assert outputs().kept() <= before + 2 * MEBI


@pytest.mark.parametrize(("wish", "expected"), [("3", "3145728"), ("0", "0"), ("", "ok"), ("-1", "whole number")])
def test_the_bound_is_a_setting(wish: str, expected: str) -> None:
    program = (
        "from wholebatch.kernels.batch_norm.outputs import outputs\n"
        "try:\n    limit = outputs().limit\n    print(limit, 'ok' if 0 < limit <= 1 << 30 else '')\n"
        "except ValueError as e:\n    print(e)"
    )
    result = run(program, WHOLEBATCH_KEPT_MIB=wish)
    assert expected in result.stdout, result.stderr


def test_an_output_may_outlive_the_module() -> None:
    """Freed when the interpreter ends, whatever is gone by then."""
    program = (
        "import builtins, torch\n"
        "from wholebatch.kernels.batch_norm import Affine, Native\n"
        "z = torch.randn(4096, 128)\n"
        "builtins.kept = Native().apply(z, torch.zeros(128), torch.ones(128), Affine())\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
