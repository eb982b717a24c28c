"""The study of micro-batches: the same steps for every way, resumable, and tables that say what the runs hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
import torch.nn.functional as F

from benchmarks import study_cases, study_figures, study_runs, study_tables
from benchmarks.study_cases import BATCH, BUDGET, NOISE, ROWS, SIZE, WAYS, load_data, make_net, order_of, step_of
from benchmarks.study_runs import Plan, Run
from measuring import run

NETS: tuple[study_cases.Net, ...] = ("conv", "mlp")
KEY = {"net": "mlp", "way": "undivided", "rate": 0.1, "seed": 0, "epochs": 1, "offload": None, "threads": 1}


def test_the_data_are_the_digits_made_harder():
    data = load_data()
    assert {name: len(split.y) for name, split in data.items()} == ROWS
    assert sum(ROWS.values()) == 1797
    x = torch.cat([split.x for split in data.values()])
    assert x.shape == (1797, 1, SIZE, SIZE)
    assert len({image.numpy().tobytes() for image in x}) == 1797  # none stands in two splits
    # The ink of the digits is 0.305 on average, over 64 of 100 places, times contrasts of 0.75 on average; of 180,000
    # noises the mean has a deviation of 0.0003, of 1797 contrasts one of 0.0007.
    assert float(x.mean()) == pytest.approx(0.305 * 0.64 * 0.75, abs=0.003)
    assert float(x.min()) < -2 * NOISE
    again = load_data.__wrapped__()
    assert all(
        torch.equal(again[name].x, split.x) and torch.equal(again[name].y, split.y) for name, split in data.items()
    )


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", WAYS)
def test_every_way_makes_the_gradient_that_it_says(net: study_cases.Net, name: str):
    way, data = WAYS[name], load_data()["train"]
    x, y = data.x[:BATCH].double(), data.y[:BATCH]
    model, same = (make_net(net, way.norm, 3).double() for _ in range(2))
    loss = step_of(way, model, "cpu")(x, y)
    micro = BATCH if way.exact else way.micro
    parts = list(zip(x.split(micro), y.split(micro), strict=True))
    expected = sum(F.cross_entropy(same(a), b, reduction="sum") / BATCH for a, b in parts)
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)  # plain adds up in float32
    for (label, a), b in zip(model.named_parameters(), same.parameters(), strict=True):
        # Some hundred float64 operations on numbers of size 1.
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=label)
    if way.norm == "batch" and not way.exact and way.micro < BATCH:
        whole = make_net(net, "batch", 3).double()
        F.cross_entropy(whole(x), y).backward()
        weight, other = next(model.parameters()).grad, next(whole.parameters()).grad
        assert weight is not None
        assert other is not None
        assert not torch.allclose(weight, other, rtol=1e-2)  # the check above can tell the two apart


def test_both_norms_begin_with_the_same_weights():
    for net in NETS:
        batch, group = (make_net(net, norm, 5).state_dict() for norm in ("batch", "group"))
        weights = [value for key, value in batch.items() if value.dim() > 1]
        others = [value for key, value in group.items() if value.dim() > 1]
        assert len(weights) == 4
        assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_every_way_gets_the_same_mini_batches():
    classes = load_data()["train"].y
    orders = {
        name: order_of(way, len(classes), classes, torch.Generator().manual_seed(7)) for name, way in WAYS.items()
    }
    first = orders["undivided"]
    assert len(first) == 1000 // BATCH
    assert len(torch.cat(first).unique()) == len(first) * BATCH
    for name, order in orders.items():
        for a, b in zip(first, order, strict=True):
            assert torch.equal(
                a if not WAYS[name].sorted else a.sort().values, b if not WAYS[name].sorted else b.sort().values
            )
    few = [len(classes[part].unique()) for step in orders["plain-8-sorted"] for part in step.split(BUDGET)]
    many = [len(classes[part].unique()) for step in orders["plain-8"] for part in step.split(BUDGET)]
    assert sum(few) / len(few) < 3 < 5 < sum(many) / len(many)


def test_a_run_is_the_same_again_and_lockstep_follows_the_undivided_net():
    a, b = (study_runs.train(KEY) for _ in range(2))
    for name in ("steps", "loss", "validation_loss", "test_accuracy"):
        assert a[name] == b[name]
        assert len(a[name]) == 2
    assert a["steps"] == [0, 15]
    assert (a["loss"][0], a["seconds"][0]) == (None, 0)
    assert a["seconds"][1] > 0
    followed = study_runs.train(KEY | {"way": "lockstep", "offload": "none"})
    apart = study_runs.train(KEY | {"way": "plain-8"})
    # float32 rounds to 6e-8; 15 steps of a net of four layers make it larger, a thousandfold at most.
    assert followed["loss"][1] == pytest.approx(a["loss"][1], rel=1e-4)
    assert apart["loss"][1] != pytest.approx(a["loss"][1], rel=1e-3)


def made(net: str = "mlp", way: str = "undivided", rate: float = 0.1, seed: int = 0, end: float = 0.5) -> Run:
    return KEY | {
        "net": net,
        "way": way,
        "rate": rate,
        "seed": seed,
        "steps": [0, 10, 20],
        "seconds": [0.0, 1.0, 2.0],
        "loss": [None, 1.0, 0.5],
        "validation_loss": [2.3, 1.0, 0.5],
        "test_loss": [2.3, 1.0, 0.6],
        "validation_accuracy": [0.1, 0.2, end],
        "test_accuracy": [0.1, 0.2, end],
    }


def test_a_study_that_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = Plan(("mlp",), ("undivided", "lockstep"), (0.1, 0.2), 2, 1, "none", 1)
    trained: list[Run] = []

    def train(key: Run) -> Run:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(key)
        return {"steps": [0]}

    monkeypatch.setattr(study_runs, "train", train)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        study_runs.complete(plan, tmp_path / "runs.json", said.append)
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 3
    monkeypatch.setattr(study_runs, "train", lambda key: (trained.append(key), {"steps": [0]})[1])
    runs = study_runs.complete(plan, tmp_path / "runs.json", said.append)
    assert len(trained) == len(runs) == 8
    assert [{name: r[name] for name in trained[0]} for r in runs] == trained == list(plan.keys())
    assert [key["seed"] for key in trained] == [0] * 4 + [1] * 4  # seed by seed
    assert {key["offload"] for key in trained if key["way"] == "undivided"} == {None}
    assert study_runs.complete(plan, tmp_path / "runs.json", said.append) == runs
    assert len(trained) == 8


@pytest.mark.parametrize("content", ["{", "[1]", '[{"net": "mlp"}]'])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path):
    (tmp_path / "runs.json").write_text(content)
    with pytest.raises(ValueError, match=r"runs\.json is not a list of the study's runs"):
        study_runs.load(tmp_path / "runs.json")


def test_the_table_by_hand():
    runs = [
        made(seed=0, end=0.8),
        made(seed=1, end=0.9),
        made(seed=0, rate=0.2, end=0.95),  # better once, worse on average
        made(seed=1, rate=0.2, end=0.7),
        made(way="plain-2", seed=0, rate=0.2, end=0.7),
        made(way="plain-2", seed=1, rate=0.2, end=0.6),
        made(net="conv", end=0.1),
    ]
    assert study_runs.chosen_rate(runs[:4]) == 0.1
    assert study_runs.chosen_rate([made(rate=0.2), made(rate=0.1)]) == 0.1  # of equals the lower
    sheet = study_tables.sheet_of("mlp", runs)
    assert sheet.rows == [
        ("undivided", "64 examples", "0.1", "85.0 ± 7.1 %", "80.0%–90.0%", "0.600", "0.500", "100.0", "+0.0 ± 0.0"),
        ("plain-2", "2 examples", "0.2", "65.0 ± 7.1 %", "60.0%–70.0%", "0.600", "0.500", "100.0", "-20.0 ± 14.1"),
    ]
    assert "2 seeds" in sheet.caption
    broken = made(way="plain-2")
    broken["loss"][-1] = None
    assert study_tables.sheet_of("mlp", [broken]).rows[0][6] == "not finite"


def test_the_figure_has_the_means_and_the_bands():
    figure = study_figures.draw("mlp", [made(seed=0, end=0.4), made(seed=1, end=0.8), made(way="group", end=0.6)])
    assert len(figure.data) == 2 * 4 * 3
    shown = [trace for trace in figure.data if trace.showlegend]
    assert [trace.name for trace in shown] == ["undivided batch", "group norm"]
    by_step = [trace for trace in figure.data if trace.legendgroup == "undivided" and trace.yaxis == "y3"]
    low, high, mean = by_step[:3]
    assert list(mean.x) == [10, 20]
    assert (list(low.y), list(high.y), list(mean.y)) == ([0.2, 0.4], [0.2, 0.8], pytest.approx([0.2, 0.6]))
    labels = {study_tables.label(way) for way in WAYS.values()}
    assert len(labels) == len(WAYS) == len(study_figures.COLORS)


def test_without_an_exporter_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: go.Figure, **_: Any) -> bytes:
        raise ValueError("Image export requires\n kaleido")

    monkeypatch.setattr(go.Figure, "to_image", fail)
    assert study_figures.write_pictures(tmp_path, {"a": go.Figure()}) == "Image export requires kaleido"
    assert list(tmp_path.iterdir()) == []


def test_a_run_writes_runs_tables_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(go.Figure, "to_image", lambda self, format: f"<svg {format}>".encode())
    options = ["--nets", "mlp", "--epochs", 1, "--seeds", 1, "--rates", "0.1", "--out", tmp_path / "out"]
    assert run("study", *options, "--ways", "undivided,lockstep,plain-8,group") == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"runs.json", "study.md", "study.html", "micro-batches-mlp.svg"}
    kept = json.loads((out / "runs.json").read_text())
    assert sorted(r["way"] for r in kept) == ["group", "lockstep", "plain-8", "undivided"]
    assert {r["way"]: r["offload"] for r in kept}["lockstep"] == "cpu"
    shown, text = capsys.readouterr().out, (out / "study.md").read_text()
    for words in ("mlp: at the end of training", "plain-8", "learning rates 0.1", "in the first epoch"):
        assert words in shown
        assert words in text
    page = (out / "study.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "plain accumulation, 8 at a time" in page
    shutil.move(out / "study.md", tmp_path / "before.md")
    assert run("study", "--redraw", "--nets", "mlp", "--out", out) == 0
    assert json.loads((out / "runs.json").read_text()) == kept
    table = text[text.index("###") :]
    assert (out / "study.md").read_text().endswith(table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--nets", "A"), ("unknown net 'A'", "conv, mlp")),
        (("--ways", "A"), ("unknown way 'A'", ", ".join(WAYS))),
        (("--rates", "0"), ("must be positive and finite",)),
        (("--offload", "disk"), ("'disk'", "none", "cpu", "recompute")),
    ],
)
def test_a_mistake_is_one_sentence_that_names_what_is_known(options: Any, words: Any, capsys: Any):
    assert run("study", *options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said


def test_nothing_to_draw_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("study", "--redraw", "--out", tmp_path) == 1
    assert "run without --redraw" in capsys.readouterr().err
