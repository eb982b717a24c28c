"""The switch ``matmul_precision`` wherever a person finds it: fit, over ranks, the estimators, the command."""

from __future__ import annotations

import json
import warnings
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import Tensor

import wholebatch.feedforward.engines
from oracle import make_model
from processes import start
from ranks import run_ranks
from small_problem import X, Y, copy_of, same
from tables_for_runs import QUICK, write_small
from wholebatch import FeedForward, Loss, Optimizer, Training, kernels
from wholebatch.feedforward.engines import check_fit, describe_engine, describe_products, make_engine
from wholebatch.feedforward.footprint import reference_need
from wholebatch.feedforward.settings import Architecture
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.feedforward.spread import Spread
from wholebatch.feedforward.training import fit
from wholebatch.runs import Settings, resume
from wholebatch.runs.folder import Run
from wholebatch.sklearn import MLPClassifier, MLPRegressor

PRECISIONS = ("highest", "high", "medium")
WRONG = "matmul_precision is 'low'; choose one of 'highest', 'high', 'medium'"
IN_FLOAT64 = (
    r"matmul_precision is 'medium', which rounds the products of a float32 net, and the net is in float64: use "
    r"net.float\(\), or matmul_precision='highest'"
)
X32 = X.astype(np.float32)
HAS_UNIT = kernels.native_available() and all(kernels.product_unit(precision) for precision in PRECISIONS[1:])
ENGINES = ["reference", *(["native"] if HAS_UNIT else [])]


def net(dtype: torch.dtype = torch.float32) -> FeedForward:
    return make_model((6, 17, 9, 3), "batch", "before", "tanh", dtype=dtype)


def trained(**settings: Any) -> dict[str, Tensor]:
    model = net()
    model.fit(X32, Y, training=Training(epochs=3, batch_size=16), **{"engine": "reference", **settings})
    return copy_of(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_fit_takes_it_and_the_highest_is_the_default(engine: str):
    nets = {precision: trained(engine=engine, matmul_precision=precision) for precision in PRECISIONS}
    assert same(nets["highest"], trained(engine=engine))
    for one, other in (("highest", "high"), ("high", "medium"), ("highest", "medium")):
        assert not same(nets[one], nets[other])


def test_what_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match=WRONG):
        net().fit(X32, Y, matmul_precision="low")
    with pytest.raises(ValueError, match=IN_FLOAT64):
        net(torch.float64).fit(X, Y, matmul_precision="medium", engine="reference")
    with pytest.raises(ValueError, match="the net is in bfloat16"):
        make_engine(net(torch.bfloat16), Loss("mse"), Optimizer(), engine="reference", matmul_precision="high")


def part(rank: int, ranks: int, shards: int = 4) -> slice:
    bounds, each = shard_bounds(len(X), shards), shards // ranks
    return slice(bounds[rank * each], bounds[(rank + 1) * each])


def over_ranks(rank: int, ranks: int, group: str | None, sync: Any = "all") -> list[dict[str, Tensor]]:
    """The nets of both lower precisions on every engine, from inputs far from zero."""
    found = []
    for engine, precision in product(ENGINES, PRECISIONS[1:]):
        model, own = net(), part(rank, ranks)
        settings: dict[str, Any] = {"spread": Spread(4 if sync == "all" else ranks, sync), "process_group": group}
        x = X32[own] + (1e3 if sync == "all" else 0)  # late statistics move nothing
        training = Training(epochs=2, batch_size=16)
        model.fit(x, Y[own], training=training, engine=engine, matmul_precision=precision, **settings)
        found.append(copy_of(model))
    return found


def test_over_shards_the_same_bits_with_any_number_of_ranks():
    alone = over_ranks(0, 1, None)
    assert not any(same(one, other) for one, other in combinations(alone, 2))
    for outcome in run_ranks(over_ranks, 2, 2, "world"):
        assert all(same(one, other) for one, other in zip(outcome.value, alone, strict=True))


def test_ranks_that_normalise_by_late_statistics_have_the_same_net():
    one, other = (outcome.value for outcome in run_ranks(over_ranks, 2, 2, "world", "late"))
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert not any(same(a, b) for a, b in combinations(one, 2))


def disagree(rank: int) -> str:
    own = part(rank, 2)
    with pytest.raises(ValueError, match="matmul_precision") as caught:
        fit(net(), X32[own], Y[own], spread=Spread(), engine="reference", matmul_precision=PRECISIONS[1 + rank])  # type: ignore[call-overload]
    said = str(caught.value)
    with pytest.raises(ValueError, match="matmul_precision") as caught:
        MLPClassifier(spread=Spread(), engine="reference", matmul_precision=PRECISIONS[1 + rank]).fit(X32[own], Y[own])
    assert "disagree on" in str(caught.value)
    return said


def test_ranks_that_differ_are_told():
    for outcome in run_ranks(disagree, 2):
        assert outcome.value == (
            "the ranks disagree on matmul_precision: rank 0 has high, rank 1 has medium; give all ranks the same"
        )


needs_native = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part of wholebatch is missing")


@needs_native
def test_a_processor_without_a_unit_has_float32_products_and_says_so_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHOLEBATCH_PRODUCT_UNIT", "none")
    kernels.say_no_product_unit.cache_clear()
    with pytest.warns(RuntimeWarning, match="no unit for products of bfloat16 numbers") as said:
        found = trained(engine="native", matmul_precision="medium")
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(trained(engine="native", matmul_precision="high"), found)
    assert same(found, trained(engine="native"))
    assert describe_products("native", "medium") == "float32, for want of a bfloat16 unit (medium asked for)"
    assert describe_products("reference", "medium") == "bfloat16 (medium), by torch"
    kernels.say_no_product_unit.cache_clear()


@needs_native
def test_an_unknown_unit_is_told_in_one_sentence(tmp_path: Path):
    line = ["train", "iris", "--target", "species", "--matmul-precision", "medium", "--out", str(tmp_path / "run")]
    code, out, err = start(tmp_path, *line, WHOLEBATCH_PRODUCT_UNIT="abacus").wait()
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "WHOLEBATCH_PRODUCT_UNIT is 'abacus'; known are amx, avx512_bf16 and none" in err
    assert not (tmp_path / "run").exists()


def test_what_bits_depend_on_names_the_unit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "product_unit", lambda *_: "amx")
    monkeypatch.setattr(wholebatch.feedforward.engines, "_is_native", lambda engine, say=False: engine == "native")
    assert describe_engine("native", 2) == describe_engine("native", 3, "highest")
    assert describe_engine("native", 2, "high").endswith(" instructions, products in bfloat16 (high), by amx")
    assert describe_engine("reference", 2, "medium").endswith("2 threads, products in bfloat16 (medium), by torch")


def test_copies_that_are_rounded_are_counted(monkeypatch: pytest.MonkeyPatch):
    architecture, rows = Architecture(100, (3000, 2000), 500), 5000
    sizes = {
        precision: reference_need(architecture, Optimizer("sgd"), rows, torch.float32, precision).total
        for precision in PRECISIONS
    }
    operands = 4 * (rows * 2000 + 2000 * 500)
    assert (sizes["medium"] - sizes["highest"], sizes["high"] - sizes["highest"]) == (operands, 2 * operands)
    for precision in PRECISIONS:
        settings: dict[str, Any] = {"engine": "reference", "matmul_precision": precision}
        for free, fits in ((sizes[precision], True), (sizes[precision] - 1, False)):
            monkeypatch.setattr("wholebatch.feedforward.memory.free_bytes", lambda free=free: free)
            if fits:
                check_fit(architecture, Optimizer("sgd"), rows, torch.float32, **settings)
            else:
                with pytest.raises(ValueError, match=f"needs {sizes[precision]:,} bytes"):
                    check_fit(architecture, Optimizer("sgd"), rows, torch.float32, **settings)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_estimators_learn_with_it(kind: Any, solver: str):
    def learn(**more: Any) -> Any:
        settings = {"hidden_layer_sizes": (16, 8), "max_iter": 4, "random_state": 0, "engine": "reference"}
        return kind(solver=solver, **settings, **more).fit(X32, Y)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Stochastic Optimizer")
        found = {precision: learn(matmul_precision=precision) for precision in PRECISIONS}
        usual = learn()
    assert usual.matmul_precision == "highest"
    assert found["highest"].loss_curve_ == usual.loss_curve_
    assert len({estimator.loss_ for estimator in found.values()}) == 3
    assert clone(found["medium"]).matmul_precision == "medium"
    for estimator in found.values():
        module = estimator.to_torch()
        with torch.no_grad():
            out = module(torch.from_numpy(X32)).numpy()
        given = estimator.predict_proba(X32) if kind is MLPClassifier else estimator.predict(X32)[:, None]
        expected = np.exp(out) / np.exp(out).sum(1, keepdims=True) if kind is MLPClassifier else out
        # Predictions are of the highest precision: three layers of at most 16 terms in float32, each 2^-24.
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_partial_fit_may_change_it_between_calls():
    estimator = MLPClassifier((16,), random_state=0, engine="reference", matmul_precision="medium")
    estimator.partial_fit(X32, Y, classes=[0, 1, 2])
    other = clone(estimator).partial_fit(X32, Y, classes=[0, 1, 2])
    estimator.partial_fit(X32, Y)
    other.set_params(matmul_precision="highest").partial_fit(X32, Y)
    assert estimator.loss_ != other.loss_
    assert estimator._steps == other._steps == 2
    assert estimator.loss_curve_[0] == other.loss_curve_[0]


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (X, {}, r"matmul_precision='medium' rounds the products of a float32 net, and X in float64 makes it .* "
                r"fit X.astype\(np.float32\), or use matmul_precision='highest'"),
        (X32, {"solver": "lbfgs"}, r"matmul_precision='medium' with solver='lbfgs': L-BFGS works in float64"),
        (X32, {"matmul_precision": "low"}, r"'matmul_precision' parameter .* must be a str among .*Got 'low'"),
    ],
    ids=["float64", "lbfgs", "unknown"],
)  # fmt: skip
def test_estimators_refuse_what_has_no_rounded_products(x: np.ndarray, settings: dict[str, Any], message: str):
    estimator = MLPClassifier(**{"engine": "reference", "matmul_precision": "medium", **settings})
    with pytest.raises(ValueError, match=message):
        estimator.fit(x, Y)
    assert not hasattr(estimator, "coefs_")


def command(folder: Path, *line: str) -> str:
    """What a command that must succeed says on stdout."""
    code, out, err = start(folder, *line).wait()
    assert (code, err) == (0, "")
    return out


@pytest.fixture
def line(tmp_path: Path) -> list[str]:
    """A training without its folder."""
    return ["train", str(write_small(tmp_path / "table.csv", "a", "b", "kind")), "--target", "kind", *QUICK]


def test_the_command_keeps_it_with_the_run(tmp_path: Path, line: list[str]):
    for precision in PRECISIONS:
        run = tmp_path / precision
        given = [] if precision == "highest" else ["--matmul-precision", precision]
        command(tmp_path, *line, *given, "--out", str(run))
        config, report = (json.loads((run / name).read_text()) for name in ("config.json", "report.json"))
        words = "float32" if precision == "highest" else f"bfloat16 ({precision}), by torch"
        assert config["products"] == report["how"]["products"] == words
        assert words in (run / "report.html").read_text()
        model = json.loads((run / "model.json").read_text())
        for file in (config, report, model):
            assert file["settings"]["matmul_precision"] == precision
    assert len({(tmp_path / precision / "model.safetensors").read_bytes() for precision in PRECISIONS}) == 3


def test_a_resumed_run_goes_on_with_it(tmp_path: Path, line: list[str]):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run in (whole, stopped):
        command(tmp_path, *line, "--matmul-precision", "medium", "--out", str(run))
    for name in ("model.safetensors", "model.json", "report.json", "report.html"):
        (stopped / name).unlink()
    (stopped / "checkpoint.previous.safetensors").replace(stopped / "checkpoint.safetensors")  # after epoch 2 of 3
    resumed = ["train", "--resume", str(stopped), "--quiet"]
    code, _, err = start(tmp_path, *resumed, "--matmul-precision", "high").wait()
    assert (code, err) == (
        1,
        f"wholebatch: the run in {stopped} was started with --matmul-precision medium, not with --matmul-precision "
        "high: a run goes on with the settings it was started with; leave the option out, or start a new run with "
        "another --out\n",
    )
    command(tmp_path, *resumed)
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_without_the_key_is_of_the_highest(tmp_path: Path, line: list[str]):
    command(tmp_path, *line, "--out", str(tmp_path / "run"))
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["matmul_precision"], config["products"]
    path.write_text(json.dumps(config | {"version": 2}))
    read = Run(tmp_path / "run").read_config()
    assert (read.settings.matmul_precision, read.products) == ("highest", "float32")
    command(tmp_path, "train", "--resume", str(tmp_path / "run"), "--quiet")


def test_a_run_that_goes_on_with_other_products_says_so(tmp_path: Path, line: list[str]):
    """As on another processor, which has another unit or none."""
    run = tmp_path / "run"
    command(tmp_path, *line, "--matmul-precision", "medium", "--out", str(run))
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"products": "bfloat16 (medium), by amx"}))
    with pytest.warns(RuntimeWarning, match=r"started with products in bfloat16 \(medium\), by amx and goes on with "):
        resume(run)


def test_a_wrong_name_is_told_in_one_sentence(tmp_path: Path):
    code, out, err = start(tmp_path, "train", "iris", "--target", "species", "--matmul-precision", "low").wait()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--matmul-precision" in err
    assert "'low' is not one of 'highest', 'high', 'medium'" in err
    with pytest.raises(ValueError, match="matmul_precision"):
        Settings.model_validate({"table": "iris", "target": ("species",), "matmul_precision": "low"})
