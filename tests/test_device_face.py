"""``device`` where people meet it: estimators, ``wholebatch train`` and ``fit``; without a GPU one sentence each."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_problem import X, Y, net
from tests.programs import run_alone
from wholebatch import Training
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.settings import Loss, Optimizer
from wholebatch.sklearn import MLPClassifier, MLPRegressor

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
SMALL: dict[str, Any] = {"hidden_layer_sizes": (9,), "max_iter": 4, "batch_size": 20, "random_state": 0, "tol": 0.0}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer.*:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_an_estimator_on_a_device_learns_what_the_reference_learns(kind: Any) -> None:
    """float64, four epochs of Adam: sums of 20 rows round by 20 * 2^-53, made no more than 1e4 times larger."""
    y = Y if kind is MLPClassifier else X @ np.arange(6.0)
    reference, device = (kind(**SMALL, engine=engine, dropout=0.2).fit(X, y) for engine in ("reference", "device"))
    assert device.loss_curve_ == pytest.approx(reference.loss_curve_, rel=1e-11)
    for one, other in zip(device.coefs_, reference.coefs_, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)
    again = pickle.loads(pickle.dumps(device))
    np.testing.assert_array_equal(again.predict(X), device.predict(X))
    assert all(type(array) is np.ndarray for array in again.coefs_)


@without_gpu
def test_an_estimator_without_the_gpu_it_names() -> None:
    estimator = MLPClassifier(**SMALL, device="cuda")
    with pytest.raises(ValueError, match=r"device is 'cuda', and torch sees no GPU here.*choose 'cpu'"):
        estimator.fit(X, Y)
    assert not hasattr(estimator, "coefs_")


@without_gpu
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer.*:sklearn.exceptions.ConvergenceWarning")
def test_an_estimator_that_was_fitted_on_a_gpu_predicts_on_the_cpu_when_told_to() -> None:
    """As it is loaded where there is no GPU: its arrays are the host's, and the parameter says where to compute."""
    fitted = MLPClassifier(**SMALL, engine="device").fit(X, Y)
    expected = fitted.predict(X)
    loaded = pickle.loads(pickle.dumps(fitted.set_params(device="cuda")))
    with pytest.raises(ValueError, match="torch sees no GPU here"):
        loaded.predict(X)
    np.testing.assert_array_equal(loaded.set_params(device="cpu").predict(X), expected)


TRAIN = """
import sys
from wholebatch.commands import main
main(sys.argv[1:])
"""


def train(*arguments: str) -> Any:
    return run_alone(TRAIN, "train", *arguments)


@without_gpu
def test_train_without_the_gpu_it_is_asked_for_leaves_no_folder(tmp_path: Path) -> None:
    for asked, said in (
        (("--device", "cuda"), "device is 'cuda', and torch sees no GPU here"),
        (("--device", "graphics"), "device is 'graphics'; choose 'cpu', 'cuda', or 'cuda:1' and the like"),
    ):
        done = train("iris", "--target", "species", "--out", str(tmp_path / "run"), *asked)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
        assert not (tmp_path / "run").exists()


def test_train_by_the_engine_of_devices_is_recorded_and_goes_on(tmp_path: Path) -> None:
    """On the CPU: ordinary files are kept, and a run that stopped after two epochs ends as one that did not."""
    common = ("iris", "--target", "species", "--engine", "device", "--hidden", "8", "--quiet", "--patience", "0")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(*common, "--epochs", "3", "--out", str(whole)).returncode == 0
    settings = json.loads((whole / "config.json").read_text())["settings"]
    assert (settings["engine"], settings["device"]) == ("device", "cpu")
    stopped = run_alone(STOP, *common, "--epochs", "3", "--out", str(halves))
    assert stopped.returncode == 0, stopped.stderr
    assert not (halves / "model.json").exists()
    assert train("--resume", str(halves), "--quiet").returncode == 0
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


STOP = """
import os, sys
import wholebatch.runs.session as session
keep = session.save_checkpoint
def save(path, state):
    keep(path, state)
    if len(state.history.epochs) == 2:
        os._exit(0)  # as a machine that is switched off
session.save_checkpoint = save
from wholebatch.commands import main
main(["train", *sys.argv[1:]])
"""


def test_fit_on_a_device_has_the_numbers_of_the_reference() -> None:
    """float64: see above; validation and the best epoch are seen to by the same code."""
    ends = []
    for engine in ("reference", "device"):
        model = net(dropout=0.2)
        history = model.fit(
            X, Y, training=Training(epochs=4, batch_size=16, patience=3), validation=(X, Y), engine=engine
        )
        ends.append((history, model.state_dict()))
    (one, state), (other, wanted) = ends
    assert (other.best_epoch, other.best_score) == (one.best_epoch, one.best_score)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-11)


def test_an_engine_knows_its_name() -> None:
    engine = make_engine(net(), Loss("mse"), Optimizer(), engine="device")
    assert type(engine).__name__ == "DeviceEngine"
    assert engine.predicted_rows == 8192
