"""What a person asked of a training run, as plain values: the ``settings`` of ``config.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.feedforward.settings import (
    Activation,
    Architecture,
    Loss,
    MatmulPrecision,
    Norm,
    NormPosition,
    Optimizer,
    Split,
)
from wholebatch.feedforward.settings import LossKind as LossKind
from wholebatch.feedforward.settings import OptimizerKind as OptimizerKind
from wholebatch.feedforward.spread import Spread, Sync
from wholebatch.feedforward.training import Schedule, Training

Task = Literal["auto", "classification", "regression", "multilabel"]
Engine = Literal["auto", "native", "reference", "device"]

#: The losses that fit each task, its default first.
LOSSES: dict[str, tuple[LossKind, ...]] = {
    "classification": ("cross_entropy",),
    "regression": ("mse", "huber"),
    "multilabel": ("bce",),
}
#: Digits, ten seeds: mean test accuracy 0.986 (least 0.978) with it, 0.981 (least 0.969) without.
DEFAULT_SMOOTHING = 0.05
#: Settings that a resumed run may change: its result does not depend on them.
FREE = ("table", "threads", "split")


class Settings(BaseModel):
    """The settings of a run; every one is an option of ``wholebatch train``, and none depends on the table's content.

    The defaults were chosen on scikit-learn's small sets; ``docs/defaults.md`` shows what they give.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    target: tuple[str, ...] = Field(min_length=1)
    task: Task = "auto"
    ignore: tuple[str, ...] = ()
    weights_column: str | None = None
    drop_missing_target: bool = False
    hidden: tuple[int, ...] = (256, 256)
    norm: Norm = "batch"
    norm_position: NormPosition = "before"
    activation: Activation = "relu"
    dropout: float = 0.3
    loss: LossKind | Literal["auto"] = "auto"
    label_smoothing: float | None = None
    class_weight: Literal["balanced"] | None = None
    optimizer: OptimizerKind = "adamw"
    momentum: float = 0.9
    learning_rate: float = 3e-3
    schedule: Schedule = "cosine"
    weight_decay: float = 1e-2
    clip: float | None = None
    batch_size: int = 32
    epochs: int = 60
    validation_fraction: float = 0.15
    test_fraction: float = 0.0
    patience: int | None = 20
    seed: int = 0
    threads: int | None = None
    split: Split = "auto"
    engine: Engine = "auto"
    matmul_precision: MatmulPrecision = "highest"
    device: str = "cpu"
    shards: int | None = None
    sync: Sync = "all"
    group_size: int | None = None

    def architecture(self, in_features: int, out_features: int) -> Architecture:
        """The net for so many features and outputs; raises ValueError for sizes or shares that no net can have."""
        return Architecture(
            in_features, self.hidden, out_features, self.norm, self.norm_position, self.activation, self.dropout
        )

    def make_loss(self, task: str, class_weights: tuple[float, ...] | None) -> Loss:
        """The loss for ``task``.

        Raises:
            ValueError: a loss, class weights or label smoothing that do not fit the task.
        """
        fitting = LOSSES[task]
        if self.loss != "auto" and self.loss not in fitting:
            raise ValueError(f"the loss {self.loss} does not fit {task}; choose {' or '.join(fitting)}")
        smoothing = self.label_smoothing
        if smoothing is None:
            smoothing = DEFAULT_SMOOTHING if task == "classification" else 0.0
        if smoothing and task == "regression":
            raise ValueError(f"label smoothing is {smoothing:g}, but values have no labels; leave it out")
        kind = fitting[0] if self.loss == "auto" else self.loss
        return Loss(kind, label_smoothing=smoothing, class_weights=class_weights)

    def make_optimizer(self) -> Optimizer:
        """The optimizer; ``momentum`` is SGD's alone."""
        return Optimizer(
            self.optimizer,
            self.learning_rate,
            momentum=self.momentum if self.optimizer == "sgd" else 0.0,
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip,
        )

    def make_training(self) -> Training:
        """How long and in which portions."""
        return Training(
            self.epochs, self.batch_size, self.schedule, patience=self.patience, seed=self.seed, watch="loss"
        )

    def make_spread(self) -> Spread:
        """How every mini-batch is spread over the processes.

        Raises:
            ValueError: a choice that contradicts another.
        """
        return Spread(self.shards, self.sync, self.group_size)

    def differences(self, other: Settings) -> dict[str, tuple[Any, Any]]:
        """Name to (mine, the other's) of each setting that a resumed run may not change, where the two differ."""
        mine, theirs = self.model_dump(), other.model_dump()
        return {n: (mine[n], theirs[n]) for n in mine if n not in FREE and mine[n] != theirs[n]}
