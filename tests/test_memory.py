"""What does not fit in memory is refused, with the numbers, before any of it is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from processes import start
from wholebatch import FeedForward, Optimizer, Training
from wholebatch.feedforward import memory
from wholebatch.feedforward.data import prepare_inputs
from wholebatch.feedforward.engines import check_fit, check_predict
from wholebatch.feedforward.footprint import native_need, net_bytes, reference_need
from wholebatch.feedforward.settings import Architecture
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

needs_native = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((4000, 50)).astype("float32"), np.arange(4000) % 3
Pretend = Callable[[int | None], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes the system say that so many bytes are free."""
    return lambda free: monkeypatch.setattr(memory, "free_bytes", lambda: free)


def fit_net(engine: str) -> None:
    net = FeedForward(50, (600,), 3, norm="none")
    net.fit(X, Y, training=Training(epochs=1, batch_size=2000), engine=engine)


def needed_by_net(engine: str) -> int:
    """Of :func:`fit_net`, of the engine alone: the net is there already, the table needs no copy."""
    architecture = Architecture(50, (600,), 3, norm="none")
    if engine != "native":
        return reference_need(architecture, Optimizer(), 2000, torch.float32).total
    from wholebatch.feedforward.threads import choose_threads

    threads = choose_threads(architecture, 2000)
    return native_need(architecture, Optimizer(), 2000, torch.float32, threads).total


def test_what_just_fits_is_trained_and_one_byte_less_is_refused(engine: str, pretend: Pretend):
    needed = needed_by_net(engine)
    assert needed > memory.SMALL
    pretend(needed)
    fit_net(engine)
    pretend(needed - 1)
    with pytest.raises(ValueError, match="sizes 50-600-3 by mini-batches of 2,000 needs") as refused:
        fit_net(engine)
    said = str(refused.value)
    assert f"{needed:,} bytes" in said
    assert f"{needed - 1:,} bytes" in said
    assert "a smaller batch size (it is 2,000)" in said
    assert "float32 in place of" not in said


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (lambda: MLPClassifier((900, 900)).fit(X, Y), ("50-900-900-3", "mini-batches of 200", "narrower")),
        (
            lambda: MLPClassifier((900, 900)).partial_fit(X, Y, classes=[0, 1, 2]),
            ("50-900-900-3", "mini-batches of 200"),
        ),
        (lambda: MLPClassifier((900,), solver="lbfgs").fit(X, Y), ("mini-batches of 4,000", "float32", "it is 4,000")),
        (lambda: MLPRegressor(hidden_layer_sizes=(900, 900), norm=None).fit(X, Y), ("50-900-900-1", "narrower")),
    ],
)
def test_the_estimators_refuse_before_they_take(
    estimate: Callable[[], Any], words: tuple[str, ...], pretend: Pretend, monkeypatch: pytest.MonkeyPatch
):
    def taken(*_: object) -> None:
        raise AssertionError("the parameters were made")

    monkeypatch.setattr(MLPClassifier, "_initialize", taken)
    monkeypatch.setattr(MLPRegressor, "_initialize", taken)
    pretend(5_000_000)
    with pytest.raises(ValueError, match=r"needs .* 5,000,000 bytes") as refused:
        estimate()
    for word in words:
        assert word in str(refused.value)


def test_partial_fit_does_not_ask_for_what_it_has(pretend: Pretend):
    model = MLPClassifier((600, 600)).partial_fit(X, Y, classes=[0, 1, 2])
    pretend(memory.SMALL)
    before = model.loss_
    model.partial_fit(X, Y)
    assert model.loss_ < before


def test_predictions_that_do_not_fit_are_refused(pretend: Pretend):
    model = MLPClassifier((8,), max_iter=1, n_iter_no_change=1)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, Y)
    many = np.lib.stride_tricks.as_strided(
        X[0], (100_000, 50), (0, 4)
    )  # 20 MB that are 200 bytes, until they are copied
    pretend(15_000_000)
    with pytest.raises(ValueError, match=r"a copy of x as float32 needs 20,000,000 bytes .* fewer rows at a time"):
        model.predict(many)
    whole = np.ascontiguousarray(many)
    pretend(2_000_000)
    with pytest.raises(ValueError, match=r"predicting 100,000 rows with .* needs 2,400,000 bytes"):
        model.predict(whole)
    pretend(2_400_000)
    assert len(model.predict(whole)) == 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_net_is_counted_as_torch_makes_it(dtype: torch.dtype, pretend: Pretend):
    for norm in ("batch", "layer", "rms", "none"):
        for position in ("before", "after"):
            architecture = Architecture(300, (500, 200), 30, norm=norm, norm_position=position)  # type: ignore[arg-type]
            pretend(None)
            net = FeedForward.of(architecture, dtype=dtype)
            taken = sum(t.numel() * t.element_size() for t in net.state_dict().values() if t.ndim)
            learned = sum(p.numel() * p.element_size() for p in net.parameters())
            assert net_bytes(architecture, dtype) == taken
            assert net_bytes(architecture, dtype, buffers=False) == learned
            pretend(taken - 1)
            if taken >= memory.SMALL:
                with pytest.raises(ValueError, match=f"{taken:,} bytes"):
                    FeedForward.of(architecture, dtype=dtype)
            FeedForward.of(architecture, dtype=dtype, device="meta")  # takes nothing


def test_copies_of_the_table_are_asked_for(pretend: Pretend):
    pretend(0)
    tall = np.zeros((10_000, 40), np.float32)
    sparse = scipy.sparse.random(10_000, 400, 0.1, format="csr", dtype=np.float32, random_state=0)
    for fits in (tall, torch.from_numpy(tall), sparse):
        assert prepare_inputs(fits, fits.shape[1], torch.float32).shape == fits.shape
    for copied in (tall.astype(np.float64), np.asfortranarray(tall), tall[:, ::-1], torch.from_numpy(tall).double()):
        with pytest.raises(ValueError, match="a copy of x as float32 needs 1,600,000 bytes"):
            prepare_inputs(copied, 40, torch.float32)
    with pytest.raises(ValueError, match="a copy of x as float64"):
        prepare_inputs(sparse, 400, torch.float64)


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path):
    line = ["train", "iris", "--target", "species", "--hidden", "10000000,10000000", "--out", str(tmp_path / "run")]
    code, out, err = start(tmp_path, *line).wait()
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("wholebatch: training a net of sizes ")
    assert "-10000000-10000000-3 by mini-batches of 32 needs" in err
    assert " are free; choose fewer or narrower hidden layers" in err
    assert not (tmp_path / "run").exists()


@needs_native
def test_an_unknown_instruction_set_is_told_in_one_sentence(tmp_path: Path):
    line = ["train", "iris", "--target", "species", "--out", str(tmp_path / "run")]
    code, _, err = start(tmp_path, *line, WHOLEBATCH_INSTRUCTION_SET="avx99").wait()
    assert code == 1
    assert err.count("\n") == 1, err
    assert "WHOLEBATCH_INSTRUCTION_SET is 'avx99'; known are avx512, avx2 and portable" in err
    assert not (tmp_path / "run").exists()


@needs_native
def test_a_prediction_in_another_team_counts_its_own_parameters(pretend: Pretend):
    architecture = Architecture(10, (700, 700), 5, norm="none")
    pretend(None)
    for held, more in ((0, 0), (200, 0), (100_000, 1)):
        need = native_need(architecture, Optimizer("sgd"), 200, torch.float32, 2)
        total = need.total + more * native_need(architecture, Optimizer("sgd"), 0, torch.float32, 2).net
        pretend(total)
        check_fit(architecture, Optimizer("sgd"), 200, torch.float32, n_threads=2, engine="native", held=held)
        pretend(total - 1)
        with pytest.raises(ValueError, match=f"needs {total:,} bytes"):
            check_fit(architecture, Optimizer("sgd"), 200, torch.float32, n_threads=2, engine="native", held=held)
    pretend(0)
    check_predict(architecture, 100, torch.float32, made=True)
    with pytest.raises(ValueError, match="predicting 100 rows"):
        check_predict(architecture, 100, torch.float32)
