"""Ranks of one process group as one worker: asked together, ended together."""

from __future__ import annotations

import select
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.crew import PATIENCE, Asked, Crew, Worker, WorkerError
from benchmarks.systems import System


class Ranks:
    """A process for each core, ranks of one group; each reads which one it is from RANK, WORLD_SIZE and RANKS_FILE.

    What takes long is what the slowest rank does: an answer's ``seconds`` are the most of all ranks, everything else is
    rank 0's. Where one fails all are ended, for the others would wait for it.
    """

    def __init__(self, name: str, places: Sequence[int], system: System, patience: float = PATIENCE) -> None:
        self.system, self.threads, self.patience = name, len(places), patience
        self._folder = tempfile.TemporaryDirectory()
        own = {"WORLD_SIZE": str(len(places)), "RANKS_FILE": f"{self._folder.name}/store"}
        self.members = [
            Worker(name, [place], replace(system, environment={**system.environment, **own, "RANK": str(rank)}))
            for rank, place in enumerate(places)
        ]

    @property
    def alive(self) -> bool:
        """Whether all ranks run."""
        return all(member.alive for member in self.members)

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send all ranks a request and wait for all answers.

        Raises:
            WorkerError: a rank died, does not answer, or tells why it cannot; all are ended.
        """
        for member in self.members:
            member.send(do, **values)
        waiting = {member.answers: rank for rank, member in enumerate(self.members)}
        found: dict[int, dict[str, Any]] = {}
        try:
            while waiting:
                ready = select.select(list(waiting), [], [], self.patience)[0]
                if not ready:
                    late = ", ".join(map(str, sorted(waiting.values())))
                    raise WorkerError(f"rank {late} gave no answer within {self.patience:.0f} seconds; all were ended")
                for answers in ready:
                    rank = waiting.pop(answers)
                    found[rank] = self.members[rank].receive()
        except WorkerError:
            self.close()
            raise
        most = {"seconds": max(answer["seconds"] for answer in found.values())} if "seconds" in found[0] else {}
        return found[0] | most

    def close(self) -> None:
        """End all ranks."""
        for member in self.members:
            member.close()
        self._folder.cleanup()


class RankCrew(Crew):
    """A crew in which a worker of n threads is n ranks of one thread, where its system is one of ``spread``."""

    def __init__(self, places: Sequence[int], spread: Mapping[str, System]) -> None:
        super().__init__(places)
        self.spread = spread

    def make(self, system: str, threads: int) -> Asked:
        if system not in self.spread:
            return super().make(system, threads)
        return Ranks(system, self.places[:threads], self.spread[system])
