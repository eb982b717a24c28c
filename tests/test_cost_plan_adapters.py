"""A plan from what a timeline or a profile recorded: times by hand, and what is assumed is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from wholebatch.commands import main
from wholebatch.cost.plan.adapters import from_profile, from_timeline
from wholebatch.cost.plan.measuring import meeting_bytes
from wholebatch.cost.plan.stretches import split
from wholebatch.cost.profile.record import Layer, Profile, Rank, Spread, Times
from wholebatch.cost.recording import Recording, load
from wholebatch.cost.recording import here as origin
from wholebatch.cost.timeline import record as timeline


def spread(median: float, low: float | None = None, high: float | None = None) -> Spread:
    return Spread(median=median, low=median if low is None else low, high=median if high is None else high)


def profiled() -> Profile:
    """Two ranks, steps of 10 and 12 ms of which 2 and 4 are spent in meetings; a batch norm that is called twice."""
    batch = {"kind": "BatchNorm1d", "shape": [32, 16], "dtype": "float32", "forward_bytes": 1, "backward_bytes": 1}
    layers = [
        Layer(name="<b>bn</b>", calls=2, share=spread(0.1), **batch),
        Layer(name="unused", calls=0, share=spread(0), **batch),
        Layer(name="ln", calls=1, share=spread(0.1), **{**batch, "kind": "LayerNorm"}),
    ]
    nothing = Times(forward=spread(0), backward=None)
    ranks = []
    for rank, (step, gone) in enumerate(((0.010, 0.002), (0.012, 0.004))):
        own = Times(
            forward=spread(0.001 + gone / 2),
            backward=spread(0.002 + gone / 2),
            wait=spread(gone * 0.75),
            exchange=spread(gone * 0.25),
        )
        ranks.append(
            Rank(
                rank=rank,
                host="here",
                step=spread(step, step / 1.1, step * 1.1),
                layers=[own, nothing, nothing],
                wait=spread(gone * 0.75),
                exchange=spread(gone * 0.25),
            )
        )
    return Profile(
        target="a:b",
        models=["Net"],
        device="cpu",
        threads=1,
        rounds=6,
        step=ranks[0].step,
        share=spread(0.2),
        overhead=None,
        layers=layers,
        ranks=ranks,
    )


def drawn(threads: int = 2, straggler: int | None = None, norm: str = "batch") -> timeline.Timeline:
    """A hidden layer of 8 and an output; thread t computes 1000 * (t + 1) ns forward and 3000 backward, each layer."""
    spans = []
    for thread in range(threads):
        at = 0
        for layer, phase, kind, duration in (
            *((0, "forward", "compute", 900 * (thread + 1)), (0, "forward", "merge", 100 * (thread + 1))),
            *((0, "forward", "wait", 7777), (1, "loss", "compute", 1000 * (thread + 1))),
            *((1, "backward", "compute", 3000), (0, "backward", "compute", 2000), (0, "update", "compute", 1000)),
        ):
            spans.append(
                timeline.Span(
                    thread=thread,
                    layer=layer,
                    name=("hidden 1", "output")[layer],
                    phase=phase,
                    kind=kind,
                    start_ns=at,
                    duration_ns=duration,
                )
            )
            at += duration
    # What the adapter does not read is left out: it may change.
    return timeline.Timeline.model_construct(
        settings=timeline.Settings.model_construct(
            sizes=[4, 8, 3],
            parameters=70,
            norm=norm,
            batch_size=64,
            threads=threads,
            split="example",
            dtype="float32",
        ),
        straggler=None if straggler is None else timeline.Straggler(thread=straggler, factor=3),
        step_ns=timeline.Spread(p20=19000, median=20000, p80=21000),
        median=timeline.Step.model_construct(index=0, duration_ns=20000, spans=spans),
    )


def test_a_profile():
    work = from_profile(profiled())
    assert [layer.name for layer in work.layers] == ["<b>bn</b>, call 1", "<b>bn</b>, call 2", "after the last norm"]
    # 8 ms of compute, 3 of it the norm's own; the other 5 before, between and after its two calls.
    between = 5000 / 3
    assert [layer.forward_us for layer in work.layers] == pytest.approx([between / 3 + 500] * 2 + [between / 3])
    assert [layer.backward_us for layer in work.layers] == pytest.approx(
        [between * 2 / 3 + 1000] * 2 + [between * 2 / 3]
    )
    assert [layer.forward_bytes for layer in work.layers] == [meeting_bytes(16)] * 2 + [0]
    assert (work.rows, work.whole_rows, work.gradient_bytes) == (32, 64, 0)
    assert len(split(work)) == 5
    assert any("without --parameters" in sentence for sentence in work.assumed)
    # Independent stretches vary so that the step, their sum, varies as recorded: 20 % from p20 to p80.
    variance = sum((one.compute_us * one.spread) ** 2 for one in split(work))
    assert variance**0.5 / 8000 == pytest.approx(0.1133, rel=0.01)


def test_a_profile_without_norms_has_one_meeting():
    found = profiled()
    found = found.model_copy(
        update={"layers": [], "ranks": [one.model_copy(update={"layers": []}) for one in found.ranks]}
    )
    (only,) = split(from_profile(found))
    assert only.gradients
    assert only.compute_us == pytest.approx(8000)


def test_a_timeline():
    """Means over threads; weight gradients and updates are backward's, waits are nobody's."""
    work = from_timeline(drawn())
    assert [layer.forward_us for layer in work.layers] == pytest.approx([1.5, 1.5])
    assert [layer.backward_us for layer in work.layers] == pytest.approx([3.0, 3.0])
    assert [layer.forward_bytes for layer in work.layers] == [meeting_bytes(8), 0]
    assert (work.rows, work.whole_rows, work.gradient_bytes) == (32, 64, 280)
    # Two pieces vary, each with a variance of 0.5 between 1 and 2; four pieces, of means 1.5 and 3, are pooled.
    assert work.layers[0].forward_spread == pytest.approx((2 * 0.5 / (2 * 1.5**2 + 2 * 3**2)) ** 0.5)


def test_a_straggler_is_no_ordinary_worker():
    work = from_timeline(drawn(threads=3, straggler=2))
    assert work.layers[0].forward_us == pytest.approx(1.5)


def test_a_timeline_of_one_thread():
    """The spread is that of its steps, shared out: (ln 21/19) / (2 * 0.8416) over the step."""
    work = from_timeline(drawn(threads=1))
    variance = sum((one.compute_us * one.spread) ** 2 for one in split(work))
    total = sum(one.compute_us for one in split(work))
    assert variance**0.5 / total == pytest.approx(0.0595, rel=0.01)


def test_norms_that_need_nobody():
    assert len(split(from_timeline(drawn(norm="layer")))) == 1


def test_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A folder of a recording, and the page says where the numbers are from; no rank is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wholebatch.cost.plan.host.run_ranks", lambda *_: pytest.fail("a rank was started"))
    (tmp_path / "profile").mkdir()
    Recording(origin=origin(["wholebatch"]), profile=profiled()).save(tmp_path / "profile" / "recording.json")
    arguments = ["--from", "profile", "--latency", "5us", "--bandwidth", "10Gbit/s", "--no-check", "--out", "out"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments, "--workers", "2,64", "--strong"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "the recorded profile of a:b, 2 ranks" in said
    record = load(tmp_path / "out" / "recording.json").plan
    assert record is not None
    assert (record.scaling, record.workload.whole_rows) == ("strong", 64)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>bn</b>" not in page
    assert "bn" in page
