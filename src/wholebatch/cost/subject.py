"""What was trained, on what: the part that all recordings of trainings on a table have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

FEW_ROWS = 100
"""Below this, a single validation row weighs more than a percent."""


class Subject(BaseModel):
    """A table, and a net that is trained on it.

    Attributes:
        table: as it was named.
        target_columns: of it.
        task: classification, regression or multilabel.
        score_name: accuracy, R2 or exact match.
        training_rows, validation_rows: rows learned from, and rows scored.
        sizes: features of the input, of each hidden layer, of the output.
        activation: of the hidden layers.
        optimizer: sgd, adam or adamw.
        batch_size: rows of the whole mini-batch.
        epochs: that every training ran, unless it diverged.
        steps_per_epoch: mini-batches in an epoch.
        seeds: of the trainings.
        notes: what a reader has to know about the table or the run; from outside.
    """

    model_config = ConfigDict(extra="forbid")

    table: str
    target_columns: list[str]
    task: str
    score_name: str
    training_rows: int
    validation_rows: int
    sizes: list[int]
    activation: str
    optimizer: str
    batch_size: int
    epochs: int
    steps_per_epoch: int
    seeds: list[int] = Field(min_length=1)
    notes: list[str]

    @property
    def net(self) -> str:
        """The net and its optimizer, the beginning of a sentence."""
        return f"Net {'-'.join(map(str, self.sizes))}, {self.activation}, {self.optimizer}"

    @property
    def training(self) -> str:
        """How long it was trained and on how many rows, the end of a sentence."""
        return (
            f"{self.epochs} epochs of {self.steps_per_epoch} steps, float32, {self.training_rows:,} rows to learn from "
            f"and {self.validation_rows:,} to score; no dropout."
        )


def doubt_seeds(subject: Subject, what: str) -> list[str]:
    """A sentence where there is a single seed: differences between ``what`` may be chance."""
    if len(subject.seeds) > 1:
        return []
    return [f"One seed: differences between {what} may be chance, and no spread can be given."]


def doubt_rows(rows: int) -> list[str]:
    """A sentence where so few validation rows say little."""
    if rows >= FEW_ROWS:
        return []
    return [f"Only {rows} validation rows: one of them weighs {1 / rows:.1%}, so small differences mean nothing."]
