"""A diagnosis, never a hang: real ranks that disagree, raise, die, leave or stay away, and what the others are told.

Every case runs by shared memory and by gloo. Time limits only guard against hanging.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ranks import Outcome, run_ranks
from wholebatch.kernels import native_available
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting, MeetingError, announce, set_timeout, sharing_of
from wholebatch.sharing.host import Process

RANKS = 3
TIMEOUT = 2.0  # seconds, for the ranks that stay away
AT_ONCE = 20.0  # seconds, where a rank raised or died: the group itself would wait for 60
MET = 3  # meetings before the trouble


@pytest.fixture(params=["shared_memory", "gloo"], scope="module")
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "shared_memory" and not (native_available() and sys.platform == "linux"):
        pytest.skip("shared memory needs the compiled part, and Linux")
    return name


def meet(layer: str, channels: int = 8, dtype: torch.dtype = torch.float32, phase: str = "forward") -> None:
    sharing = sharing_of("world")
    assert sharing is not None
    ones = torch.ones(channels, dtype=dtype)
    if phase == "forward":
        sharing.merge(Moments(4.0, ones, ones), Meeting(layer, phase))
    else:
        sharing.sum(torch.stack([ones, ones]), Meeting(layer, phase))


def trouble(rank: int, kind: str) -> None:
    """Rank 1 makes it; the others go on to layer3.bn."""
    if kind != "never came":
        for layer in range(MET):
            meet(f"layer{layer}.bn")
    elif rank == 1:
        time.sleep(2 * TIMEOUT)
        return
    if rank == 1:
        match kind:
            case "layer":
                meet("layer4.bn")
            case "channels":
                meet("layer3.bn", channels=9)
            case "many channels":
                meet("layer3.bn", channels=5000)
            case "dtype":
                meet("layer3.bn", dtype=torch.float64)
            case "phase":
                meet("layer3.bn", phase="backward")
            case "raised":
                raise ValueError("no such file")
            case "exited":
                try:
                    raise ValueError("no such file")
                except ValueError:
                    sys.exit(1)  # as torch.multiprocessing.spawn does
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "ended":
                return
            case "elsewhere":
                dist.all_reduce(torch.ones(1))
            case "slow":
                time.sleep(2 * TIMEOUT)
        return
    with pytest.raises(MeetingError) as error:
        meet("layer3.bn")
    with pytest.raises(MeetingError, match=re.escape(str(error.value))):  # at once, and the same
        meet("layer3.bn")
    raise error.value


def run_trouble(kind: str, transport: str) -> list[Outcome]:
    # The group's own timeout is the default; where rank 1 waits in a collective of its own it must not end with ours.
    timeout = TIMEOUT if kind in ("slow", "never came") else 60
    environment = {"WHOLEBATCH_TRANSPORT": transport}
    return run_ranks(trouble, RANKS, kind, environment=environment, timeout=30, group_timeout=timeout)


def rows_of(error: str) -> list[str]:
    """The table's rows, spaces collapsed."""
    lines = [" ".join(line.split()) for line in error.splitlines()]
    start = lines.index("rank last meeting number channels dtype doing")
    return lines[start + 1 : start + 1 + RANKS]


WAITING = r"layer3.bn forward 4 8 float32 (waiting in this meeting since [\d.]+ s|gave up, because .*)"


@pytest.mark.parametrize(
    ("kind", "cause", "row", "remedy"),
    [
        ("layer", "the layer", "layer4.bn forward 4 8 float32", "the same batch norms in the same order"),
        ("phase", "the phase", "layer3.bn backward 4 8 float32", "the same batch norms in the same order"),
        ("channels", "the number of channels", "layer3.bn forward 4 9 float32", "build the same model"),
        ("many channels", "the number of channels", "layer3.bn forward 4 5000 float32", "build the same model"),
        ("dtype", "the dtype", "layer3.bn forward 4 8 float64", "autocast"),
    ],
)
def test_ranks_that_disagree_are_told_how(kind: str, cause: str, row: str, remedy: str, transport: str):
    for rank, outcome in enumerate(run_trouble(kind, transport)):
        assert f"the ranks disagree on {cause}\n" in outcome.error, outcome
        assert outcome.error.startswith("MeetingError: batch norm over ranks stopped at layer")
        rows = rows_of(outcome.error)
        for other in range(RANKS):
            name = f"{other} (here)" if other == rank else str(other)
            expected = re.escape(row) if other == 1 else r"layer3.bn forward 4 8 float32"
            assert re.fullmatch(rf"{re.escape(name)} {expected} (waiting in this|gave up).*", rows[other]), rows
        assert remedy in outcome.error.splitlines()[-1]
        assert outcome.seconds < AT_ONCE


@pytest.mark.parametrize(
    ("kind", "doing", "remedy"),
    [
        ("raised", "raised ValueError: no such file", "look at what happened on rank 1 first"),
        ("exited", "raised ValueError: no such file", "look at what happened on rank 1 first"),
        ("killed", r"process \d+ is gone", "look at what happened on rank 1 first"),
        (
            "ended",
            r"process \d+ (has ended or left the group|is gone)",
            r"ran out of data.*Join\(\[JoinBatchNorms\(model\)\]\)",
        ),
    ],
)
def test_a_rank_that_will_not_come_is_told_at_once(kind: str, doing: str, remedy: str, transport: str):
    outcomes = run_trouble(kind, transport)
    assert outcomes[1].exit_code == {"raised": 1, "exited": 1, "killed": -signal.SIGKILL, "ended": 0}[kind]
    for rank in (0, 2):
        error = outcomes[rank].error
        assert re.match(rf"MeetingError: .* at layer3.bn forward, meeting 4: rank 1:? {doing}\n", error), outcomes[rank]
        rows = rows_of(error)
        assert re.fullmatch(rf"1 layer2.bn forward 3 8 float32 {doing}", rows[1]), rows
        assert re.fullmatch(rf"{rank} \(here\) {WAITING}", rows[rank]), rows
        assert re.fullmatch(rf"{2 - rank} {WAITING}", rows[2 - rank]), rows
        assert re.search(remedy, error.splitlines()[-1])
        assert outcomes[rank].seconds < AT_ONCE


def test_a_rank_that_stays_away_is_waited_for_until_the_timeout(transport: str):
    outcomes = run_trouble("slow", transport)
    for rank in (0, 2):
        error = outcomes[rank].error
        assert re.search(r"rank 1 did not come within \d\.\d s|rank \d gave up, because rank 1 did not come", error), (
            error
        )
        rows = rows_of(error)
        assert re.fullmatch(r"1 layer2.bn forward 3 8 float32 not in a meeting since [\d.]+ s", rows[1]), rows
        assert re.fullmatch(rf"{rank} \(here\) {WAITING}", rows[rank]), rows
        assert outcomes[rank].seconds > TIMEOUT
    assert "set_timeout(seconds)" in outcomes[0].error + outcomes[2].error
    assert outcomes[1].exit_code == 0  # it is not stopped


def test_a_rank_that_never_came_is_told_too(transport: str):
    outcomes = run_trouble("never came", transport)
    for rank in (0, 2):
        rows = rows_of(outcomes[rank].error)
        assert rows[1] == "1 none has not come to a first meeting", rows
        assert re.search(r"rank 1 did not come within \d\.\d s", outcomes[rank].error)


def fail_on_the_way(rank: int, kind: str) -> None:
    announce("world")  # as a layer does when it is made
    if rank == 1 and kind == "raised":
        raise ValueError("no such file")
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    meet("layer0.bn")


@pytest.mark.parametrize(
    ("kind", "doing"), [("raised", "raised ValueError: no such file"), ("killed", r"process \d+ is gone")]
)
def test_a_rank_that_fails_before_its_first_meeting_is_told_at_once(kind: str, doing: str):
    outcomes = run_ranks(fail_on_the_way, 2, kind, timeout=30)
    assert re.search(f"^MeetingError: batch norm over ranks stopped: rank 1:? {doing}\n", outcomes[0].error), outcomes[
        0
    ]
    assert outcomes[0].seconds < AT_ONCE


def wait_elsewhere(rank: int) -> str:
    """Rank 1 waits in a collective of the person's own; our timeout is shorter than its."""
    set_timeout(TIMEOUT)
    meet("layer0.bn")
    if rank == 1:
        # It ends when rank 0 comes to it, after its diagnosis.
        dist.all_reduce(torch.ones(1))
        return ""
    with pytest.raises(MeetingError) as error:
        meet("layer1.bn")
    dist.all_reduce(torch.ones(1))
    return str(error.value)


def test_a_rank_in_another_collective_is_told_and_the_persons_group_lives_on(transport: str):
    outcomes = run_ranks(wait_elsewhere, 2, environment={"WHOLEBATCH_TRANSPORT": transport}, timeout=30)
    error = outcomes[0].value
    assert "rank 1 did not come within" in error
    assert re.search(r"^1 +layer0.bn forward +1 +8 +float32 +not in a meeting since", error, re.MULTILINE), error
    assert outcomes[1].value == ""


def lose_from_afar(rank: int) -> None:
    """As if each rank were on a host of its own: nobody can look whether another's process lives."""
    Process.is_near = lambda self, other: False  # type: ignore[method-assign]
    meet("layer0.bn")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    meet("layer1.bn")


def test_a_rank_that_dies_on_another_host_is_missed():
    outcomes = run_ranks(lose_from_afar, RANKS, timeout=30)
    for rank in (0, 2):
        assert "a connection was lost: " in outcomes[rank].error, outcomes[rank]
        rows = rows_of(outcomes[rank].error)
        assert re.match(r"1 layer0.bn forward 1 8 float32 not heard of since its last meeting,", rows[1]), rows
        assert outcomes[rank].seconds < AT_ONCE


def interrupt(rank: int) -> str:
    meet("layer0.bn")
    if rank == 1:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            meet("layer1.bn")
        with pytest.raises(MeetingError, match="rank 1 raised KeyboardInterrupt in a meeting"):
            meet("layer1.bn")
        return ""
    time.sleep(1)
    with pytest.raises(MeetingError) as error:
        meet("layer2.bn")
    return str(error.value)


def test_a_wait_answers_ctrl_c_and_the_others_are_told(transport: str):
    outcomes = run_ranks(interrupt, 2, environment={"WHOLEBATCH_TRANSPORT": transport}, timeout=30)
    assert "KeyboardInterrupt" in outcomes[0].value or "disagree on the layer" in outcomes[0].value
    assert outcomes[1].value == ""


SCRIPT = """
    import sys, threading
    import torch, torch.distributed as dist
    from wholebatch.moments import Moments
    from wholebatch.sharing import Meeting, sharing_of

    rank, how, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    sys.excepthook = threading.excepthook = lambda *_: print("the earlier hook was called")
    dist.init_process_group("gloo", store=dist.FileStore(file, 2), rank=rank, world_size=2)
    sharing = sharing_of("world")

    def meet(layer):
        sharing.merge(Moments(1.0, torch.ones(2), torch.ones(2)), Meeting(layer, "forward"))

    def train():
        meet("first.bn")
        if rank == 1:
            raise ValueError("no such file")
        try:
            meet("second.bn")
        except RuntimeError as error:
            print(error)

    if how == "thread":
        # A loader's thread may fail: nobody is told. The one that trains may not.
        meet("zeroth.bn")
        loader = threading.Thread(target=lambda: 1 / 0)
        loader.start(), loader.join()
        meet("half.bn")
        trainer = threading.Thread(target=train)
        trainer.start(), trainer.join()
        if rank == 1:
            sys.stdin.read()  # lives on until rank 0 has been told
    else:
        train()
"""


@pytest.mark.parametrize("how", ["main", "thread"])
def test_uncaught_exceptions_of_a_program_are_told(how: str, tmp_path: Path):
    """In a program of its own, whose exceptions come to sys.excepthook and threading.excepthook."""
    (tmp_path / "train.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {**os.environ}
    ranks = [
        subprocess.Popen(
            [sys.executable, tmp_path / "train.py", str(rank), how, tmp_path / "store"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        told, _ = ranks[0].communicate(timeout=60)
        raised, _ = ranks[1].communicate(timeout=60)
    finally:
        for process in ranks:
            with process:  # closes its pipes
                process.kill()
    assert "rank 1 raised ValueError: no such file" in told, told
    assert "first.bn forward" in told
    assert "the earlier hook was called" in raised, raised


def test_a_process_is_told_from_another_with_its_number():
    own = Process.own()
    if not own.host:
        pytest.skip("no /proc here")
    assert not own.is_gone()
    assert own.is_near(Process.own())
    assert Process(own.host, own.pid, own.start - 1).is_gone()  # the number was given to a later process
    assert not own.is_near(Process("another boot", own.pid, own.start))
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    state = Process(own.host, child.pid, int(Path(f"/proc/{child.pid}/stat").read_text().rsplit(")")[-1].split()[19]))
    deadline = time.monotonic() + 30
    while not state.is_gone() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert state.is_gone()  # dead, though nobody has asked for its exit code yet
    child.wait()
