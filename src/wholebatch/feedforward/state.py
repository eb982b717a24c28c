"""What a run is between two epochs: how it went so far, and everything that a resumed run needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from wholebatch.feedforward.engine import Engine


@dataclass
class History:
    """One dict per epoch (``epoch`` from 1, ``loss``, ``learning_rate``, ``seconds``, ``examples_per_second``, and the
    validation's ``validation_loss`` and ``validation_score`` where there is one), and how it ended."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None
    stopped_early: bool = False

    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.epochs) - (self.best_epoch or 0)


@dataclass
class State:
    """What a run is, between two epochs: everything a resumed run needs, as named tensors and plain values."""

    history: History
    step: int
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, engine: Engine, history: History, best: dict[str, Tensor] | None) -> State:
        """The state after the epochs in ``history``, copied: what comes later does not change it."""
        tensors = {f"model.{n}": t for n, t in engine.model.state_dict().items()}
        tensors |= {f"optimizer.{n}": t for n, t in engine.optimizer_state.items()}
        tensors |= {f"best.{n}": t for n, t in (best or {}).items()}
        history = replace(history, epochs=list(history.epochs))  # training goes on with its own
        return cls(history, engine.step, {n: t.detach().clone() for n, t in tensors.items()})

    def restore(self, engine: Engine) -> dict[str, Tensor] | None:
        """Put net, optimizer and step back; returns the best epoch's parameters, if any.

        Raises:
            ValueError: it is the state of another optimizer.
        """
        kept, needed = set(self._named("optimizer.")), set(engine.optimizer_state)
        if kept != needed:
            differ = ", ".join(sorted(kept ^ needed)[:4])
            raise ValueError(
                f"the state to resume is of another net or optimizer: of {len(kept)} tensors kept and {len(needed)} "
                f"needed, these are only on one side: {differ}, ...; resume with the settings that the run began with"
            )
        engine.model.load_state_dict(self._named("model."))
        engine.optimizer_state = {n: t.clone() for n, t in self._named("optimizer.").items()}
        engine.step = self.step
        return self._named("best.") or None

    def _named(self, prefix: str) -> dict[str, Tensor]:
        return {n[len(prefix) :]: t for n, t in self.tensors.items() if n.startswith(prefix)}

    def values(self) -> dict[str, Any]:
        """The plain part, for JSON."""
        return {"step": self.step, "history": asdict(self.history)}
