"""Export to ONNX, checked in onnxruntime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests import programs
from wholebatch import FeedForward
from wholebatch.feedforward.onnx import to_onnx
from wholebatch.feedforward.settings import Activation, Norm, NormPosition

PLACES = [("none", "before"), *itertools.product(("batch", "layer", "rms"), get_args(NormPosition))]
# Every activation, and every norm in every position: an export takes a second or two.
CASES = [(*place, activation) for place, activation in zip(itertools.cycle(PLACES), get_args(Activation), strict=False)]


def run(path: Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    out: np.ndarray = session.run(["output"], {"x": x})[0]
    return out


def make(norm: Norm, position: NormPosition, activation: Activation, **settings: float) -> FeedForward:
    torch.manual_seed(0)
    net = FeedForward(6, (17, 7), 3, norm=norm, norm_position=position, activation=activation, **settings)
    with torch.no_grad():
        for part in net.parts():
            for name, tensor in part.norm.state_dict().items() if part.norm is not None else ():
                if name == "running_var":
                    tensor.uniform_(0.5, 2.0)
                elif tensor.is_floating_point():
                    tensor.uniform_(-1.0, 1.0)
    return net.train()


@pytest.mark.parametrize(("norm", "position", "activation"), CASES)
def test_onnxruntime_gives_the_nets_outputs(tmp_path: Path, norm: Norm, position: NormPosition, activation: Activation):
    """Against the float64 net. Tolerance: onnxruntime rounds each step to float32, eps = 6e-8. A sum of 17 terms errs
    by less than 17 eps of its terms' absolute sum (below 20 here), batch norm multiplies it by rstd < 1.5, three layers
    pass it on with weights of norm about 1: 3 * 17 * 6e-8 * 20 * 1.5 = 9e-5 in the worst case.
    """
    net = make(norm, position, activation, dropout=0.5)
    path = tmp_path / "net.onnx"
    net.to_onnx(path)
    assert net.training  # the net stays as it is
    onnx.checker.check_model(str(path), full_check=True)
    exact = FeedForward.of(net.architecture, dtype=torch.float64).eval()
    exact.load_state_dict(net.state_dict())
    for rows in (1, 7):
        x = np.random.default_rng(rows).standard_normal((rows, 6)).astype(np.float32)
        with torch.no_grad():
            expected = exact(torch.from_numpy(x).double()).numpy()
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(run(path, x), expected, rtol=0, atol=9e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_float64_and_a_linear_model(tmp_path: Path):
    net = FeedForward(3, (), 2, dtype=torch.float64)
    net.to_onnx(str(tmp_path / "linear.onnx"))
    x = np.random.default_rng(0).standard_normal((4, 3))
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    # a sum of 4 terms of size 1 in float64: below 4 * 1.1e-16 * 4
    np.testing.assert_allclose(run(tmp_path / "linear.onnx", x), expected, rtol=0, atol=2e-15)


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    net = FeedForward(3, (4,), 2)
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        net.to_onnx(path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_too_large_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("wholebatch.feedforward.onnx.LARGEST", 100)
    net = FeedForward(3, (4,), 2)
    size = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    with pytest.raises(ValueError, match=f"the net has {size} bytes, an ONNX file holds at most 100"):
        to_onnx(net, tmp_path / "net.onnx")


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs onnx and onnxscript: pip install 'wholebatch\[onnx\]'"):
        FeedForward(3, (4,), 2).to_onnx(tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_exporter_says_nothing_about_itself(tmp_path: Path):
    code = "import sys, wholebatch; wholebatch.FeedForward(3, (4,), 2).to_onnx(sys.argv[1])"
    done = programs.run(code, str(tmp_path / "net.onnx"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "net.onnx").stat().st_size > 100
