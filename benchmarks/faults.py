"""``python -m benchmarks faults``: ranks are killed at random moments; what comes of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

import click

from benchmarks import machine
from benchmarks.cores import usable
from benchmarks.options import OutFile
from benchmarks.sheet import Sheet
from benchmarks.talk import Talk
from wholebatch import files
from wholebatch.commands.asked import Asked
from wholebatch.commands.ending import Ending

EPOCHS = 40
TRAINING = ("breast_cancer", "--target", "diagnosis", "--epochs", str(EPOCHS), "--hidden", "32,32", "--patience", "0")
GRACE = 5.0  # seconds that a process gets to be gone once its command has ended

LEGEND = f"""\
A run of {EPOCHS} epochs (scikit-learn's breast_cancer, 32-32, dropout, AdamW), whose ranks torch's agent starts. One
rank, drawn at random, is killed with SIGKILL at a moment drawn evenly from the time that an undisturbed run takes from
its ranks' start to their end: while they read the table, train, or write a checkpoint or the report. 'after epoch': the
checkpoint that all ranks went on from. 'recovered': from the kill to the ranks' next start. 'same bytes':
model.safetensors equals that of the undisturbed run. 'left': processes of the run that were there when it had ended."""


@dataclass(frozen=True)
class Fault:
    """What came of one kill.

    Attributes:
        rank, moment: who was killed, and how many seconds after the start of the ranks.
        epoch: what the ranks went on from.
        restarts: how often they were started again.
        recovered: seconds from the kill to the next start; None: the run had come to its end.
        same: whether the model has the bytes of the undisturbed run.
        left: processes that were still there.
        said: by the command.
    """

    rank: int
    moment: float
    epoch: int
    restarts: int
    recovered: float | None
    same: bool
    left: int
    said: str


@click.command()
@click.option(
    "--runs", type=click.IntRange(1), default=50, show_default=True, help="In each of which a rank is killed."
)
@click.option("--processes", type=click.IntRange(2), default=2, show_default=True, help="Ranks.")
@click.option("--seed", type=click.IntRange(0), help="Of the draws.  [default: the clock's]")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write the table to this file.")
def faults(runs: int, processes: int, seed: int | None, json_path: Path | None, markdown: Path | None) -> None:
    """Kill ranks at random moments, and compare what the run ends with to an undisturbed one."""
    seed = time.time_ns() if seed is None else seed
    draw, found = random.Random(seed), list[Fault]()
    with Talk() as talk, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _run(folder / "first", processes, None)  # the server that forks ranks imports for seconds
        seconds = _run(folder / "undisturbed", processes, None)
        first = (folder / "undisturbed" / "model.safetensors").read_bytes()
        for number in count():
            if len(found) == runs:
                break
            rank, moment = draw.randrange(processes), draw.uniform(0, seconds)
            fault = _disturb(folder / f"disturbed{number}", processes, rank, moment, first)
            if fault is not None:
                found.append(fault)
                talk.progress(f"{len(found)} of {runs} kills: {sum(f.same for f in found)} with the same bytes")
        header = [
            *machine.describe(usable(), {"torch": _version()}),
            f"seed {seed}; an undisturbed run: {seconds:.2f} s",
        ]
        for line in [*header, tell(found)]:
            talk.out.print(line, highlight=False, markup=False)
        sheet = tabulate(found, processes)
        talk.out.print(sheet.to_rich())
        talk.out.print(LEGEND, highlight=False, markup=False)
    if json_path is not None:
        files.write_json(json_path, [asdict(fault) for fault in found])
    if markdown is not None:
        lines = "\n".join(f"- {line}" for line in header)
        files.write(markdown, "\n\n".join([lines, tell(found), sheet.to_markdown(), LEGEND]) + "\n")
    if not all(fault.same and not fault.left for fault in found):
        raise click.ClickException("a run did not end as it should have; look at the table")


def tell(found: list[Fault]) -> str:
    """All kills in one line."""
    same, left = sum(fault.same for fault in found), sum(fault.left for fault in found)
    return (
        f"{len(found)} kills: {same} runs ended with the bytes of the undisturbed run; {left} processes were left over"
    )


def tabulate(found: list[Fault], processes: int) -> Sheet:
    """A line a kill."""
    columns = ("same bytes", "kill", "rank", "at", "after epoch", "restarts", "recovered", "left")
    sheet = Sheet(f"Kills among {processes} ranks", columns, words=1)
    for number, fault in enumerate(found, 1):
        recovered = "-" if fault.recovered is None else f"{fault.recovered:.2f} s"
        sheet.rows.append(
            (
                "yes" if fault.same else "NO",
                str(number),
                str(fault.rank),
                f"{fault.moment:.2f} s",
                str(fault.epoch),
                str(fault.restarts),
                recovered,
                str(fault.left),
            )
        )
    return sheet


def _disturb(out: Path, processes: int, rank: int, moment: float, undisturbed: bytes) -> Fault | None:
    """One run into a new folder; None: it was over before the moment came."""
    killer = _Killer(_pids_of(out), processes, rank, moment)
    said = io.StringIO()
    killer.start()  # its folder is not there yet
    with contextlib.redirect_stderr(said):
        _run(out, processes, killer)
    killer.join()
    if killer.killed is None:
        return None
    deadline = time.monotonic() + GRACE
    while (left := sum(map(_runs, killer.pids()))) and time.monotonic() < deadline:
        time.sleep(0.01)
    text = said.getvalue()
    begun = killer.begun(1)
    epochs = text.rpartition("start again after epoch ")[2].split()
    return Fault(
        rank,
        moment,
        int(epochs[0]) if epochs and epochs[0].isdecimal() else 0,
        text.count("start again"),
        None if begun is None else begun - killer.killed,
        (out / "model.safetensors").read_bytes() == undisturbed,
        left,
        text,
    )


class _Killer(threading.Thread):
    """Kills one rank of the first start; ranks leave their process ids in ``folder``."""

    def __init__(self, folder: Path, processes: int, rank: int, moment: float) -> None:
        super().__init__(daemon=True)
        self.folder, self.processes, self.rank, self.moment = folder, processes, rank, moment
        self.killed: float | None = None
        self.over = threading.Event()

    def run(self) -> None:
        while (begun := self.begun(0)) is None:
            if self.over.wait(0.001):
                return
        if self.over.wait(max(0.0, begun + self.moment - time.time())):
            return
        pid = int((self.folder / f"{self.rank}.0").read_text().split()[0])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.killed = time.time()

    def begun(self, start: int) -> float | None:
        """When the last rank of a start began; None: not all have."""
        try:
            return max(float(file.read_text().split()[1]) for file in self._of(start))
        except (IndexError, ValueError):
            return None

    def pids(self) -> list[int]:
        """Of all ranks of all starts."""
        return [int(file.read_text().split()[0]) for file in self.folder.glob("*.*")]

    def _of(self, start: int) -> list[Path]:
        found = list(self.folder.glob(f"*.{start}"))
        return found if len(found) == self.processes else []


def _run(out: Path, processes: int, killer: _Killer | None) -> float:
    """Train into ``out``, which is new; seconds from the ranks' start to the end."""
    from wholebatch.commands.launching import launch
    from wholebatch.commands.train import ask

    pids = _pids_of(out)
    pids.mkdir()
    asked = ask([*TRAINING, "--quiet", "--timeout", "60", "--threads", "1", "--out", str(out)])
    try:
        launch(asked, processes, partial(_work, pids))
    finally:
        if killer is not None:
            killer.over.set()
    return time.time() - max(float(file.read_text().split()[1]) for file in pids.glob("*.0"))


def _pids_of(out: Path) -> Path:
    """Where the ranks of a run leave their process ids."""
    return out.with_name(f"{out.name}.pids")


def _work(pids: Path, asked: Asked) -> Ending | None:
    """What a rank does: it leaves its process id, and says nothing."""
    from wholebatch.commands.rank import take_part

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    start = os.environ["TORCHELASTIC_RESTART_COUNT"]
    files.write(pids / f"{os.environ['RANK']}.{start}", json.dumps(os.getpid()) + f" {time.time()}")
    return take_part(asked)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _version() -> str:
    import torch

    return torch.__version__
