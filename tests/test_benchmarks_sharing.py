"""The benchmark of shared layers: ranks that are asked together and ended together. No speed is asserted."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from benchmarks import rounds, sharing
from benchmarks.cores import usable
from benchmarks.crew import WorkerError
from benchmarks.problem import SharingProblem
from benchmarks.ranks import RankCrew, Ranks
from benchmarks.rounds import Contender, Timings
from benchmarks.systems import SHARING_SYSTEMS
from benchmarks.talk import Talk
from measuring import run
from wholebatch.kernels import native_available

two_cores = pytest.mark.skipif(len(usable()) < 2, reason="two ranks need two cores")
KEYS = {"system", "ranks", "channels", "rows", "median_us", "p20_us", "p80_us"}


@two_cores
def test_a_run_writes_rows_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sharing, "STEPS", 3)
    options = ["--channels", 64, "--rows", 8, "--repeats", 2]
    assert run("sharing", *options, "--json", tmp_path / "rows.json", "--markdown", tmp_path / "sharing.md") == 0
    rows = {row["system"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert set(rows) == {"local", "shared", "all_gather"}
    for row in rows.values():
        assert set(row) == KEYS
        assert (row["ranks"], row["channels"], row["rows"]) == (2, 64, 8)
        times = [row["p20_us"], row["median_us"], row["p80_us"]]
        assert all(math.isfinite(t) and t > 0 for t in times)
        assert times == sorted(times)
    shown, text = capsys.readouterr().out, (tmp_path / "sharing.md").read_text()
    for words in ("64 channels, 8 rows on each of 2 ranks", "shared - local, microseconds", "at most 60"):
        assert words in shown
        assert words in text


def test_more_ranks_than_cores_are_refused_with_both_numbers(capsys):
    assert run("sharing", "--ranks", len(usable()) + 1) == 2
    said = capsys.readouterr().err
    assert f"--ranks is {len(usable()) + 1}, and {len(usable())} cores can be used here" in said
    assert said.count("\n") == 1


def contender(system: str) -> Contender:
    return sharing.Meeting("64 channels", system, "batch+relu", 2)


def test_costs_and_bars_by_hand():
    timings = Timings(
        {
            contender("local"): [100e-6, 110e-6, 120e-6],
            contender("shared"): [130e-6, 150e-6, 180e-6],
            contender("all_gather"): [300e-6, 310e-6, 900e-6],
        }
    )
    more, one, two = sharing.ratios(timings)
    assert more.value == pytest.approx(40)
    assert (more.low, more.high) == pytest.approx((34, 52))  # of 30, 40, 60
    assert one.value == pytest.approx(310 / 40)
    assert two.value == pytest.approx(620 / 40)
    assert (one.low, one.high) == pytest.approx((8.65, 13.0))  # of 10, 7.75, 15
    assert [ratio.bar and ratio.bar.holds(ratio.value) for ratio in (more, one, two)] == [True, False, None]
    assert [ratio.bar for ratio in sharing.ratios(timings, barred=False)] == [None] * 3
    cheaper = Timings({contender("local"): [2e-4], contender("shared"): [1e-4], contender("all_gather"): [1e-3]})
    assert [ratio.value for ratio in sharing.ratios(cheaper)] == pytest.approx([-100])  # noise; no ratio to that
    del timings.seconds[contender("shared")]
    assert sharing.ratios(timings) == []


@two_cores
def test_ranks_stand_on_cores_of_their_own_and_one_that_dies_is_told():
    problem = SharingProblem(8, 4, "shared")
    with Talk() as talk, RankCrew(usable()[:2], SHARING_SYSTEMS) as crew:
        assert set(rounds.load(crew, ["shared"], [2], talk)) == {"shared"}
        ranks = crew.workers["shared", 2]
        assert isinstance(ranks, Ranks)
        pids = [member.process.pid for member in ranks.members]
        assert [os.sched_getaffinity(pid) for pid in pids] == [{core} for core in usable()[:2]]
        environments = [Path(f"/proc/{pid}/environ").read_text() for pid in pids]
        assert all("GLOO_SOCKET_IFNAME=lo\0" in text for text in environments)

        def kill_one() -> None:
            ranks.members[1].process.kill()

        timings = rounds.measure(
            crew, {contender("shared"): problem}, 3, talk, kill_one, least_steps={"shared": 2}, burst=0.0
        )
        assert timings.seconds == {}
        assert crew.workers == {}
    assert not any(member.alive for member in ranks.members)
    assert talk.notes[0].startswith("shared (64 channels, 2 ranks) is left out: ")
    assert len(talk.notes) == 1


@two_cores
def test_a_rank_that_says_nothing_ends_all():
    ranks = Ranks("shared", usable()[:2], SHARING_SYSTEMS["shared"], patience=0.01)
    with pytest.raises(WorkerError, match=r"rank 0, 1 gave no answer within .* all were ended"):
        ranks.ask("load")
    assert not ranks.alive


@two_cores
@pytest.mark.skipif(not native_available(), reason="the limits are measured by the compiled part")
def test_the_machine_is_measured_by_threads_beside_ranks():
    with RankCrew(usable()[:2], SHARING_SYSTEMS) as crew:
        worker = crew.start("limits", 2)
        assert not isinstance(worker, Ranks)
        assert worker.ask("peak", bursts=1)["value"] > 0
