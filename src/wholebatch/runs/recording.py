"""The recording of a run: everything its report shows, in ``report.json``. The report is a pure rendering of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars
import sklearn
import torch
from pydantic import BaseModel, ConfigDict

import wholebatch
from wholebatch.described import read_described
from wholebatch.feedforward import FeedForward, Loss
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.evaluation import score
from wholebatch.feedforward.losses import loss_value
from wholebatch.feedforward.training import History
from wholebatch.files import write
from wholebatch.runs.evaluation import Evaluation, evaluate
from wholebatch.runs.folder import Config
from wholebatch.runs.model import Model
from wholebatch.runs.predicted import Predicted
from wholebatch.runs.prepared import Prepared

FORMAT, VERSION = "wholebatch recording", 1
SCORES = {"classification": "accuracy", "regression": "R2", "multilabel": "exact match"}
MOST_EPOCHS = 1000

PartName = Literal["training", "validation", "test"]


class PartScore(BaseModel):
    """How the finished net does on a part of the rows, in eval mode."""

    part: PartName
    rows: int
    loss: float | None
    score: float | None


class LayerRecord(BaseModel):
    """A layer of the net: what it is made of and how many parameters each piece has."""

    name: str
    size: int
    pieces: list[tuple[str, int]]

    @property
    def parameters(self) -> int:
        return sum(count for _, count in self.pieces)


class ColumnRecord(BaseModel):
    """A column of the table and what became of it."""

    name: str
    kind: str
    features: int
    became: str


class Recording(BaseModel):
    """``report.json``."""

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    wholebatch: str
    table: str
    target: list[str]
    task: str
    classes: int
    score_name: str
    scores: list[PartScore]
    history: list[dict[str, float | None]]
    epochs: int
    best_epoch: int | None
    stopped_early: bool
    shown: PartName
    evaluation: Evaluation
    layers: list[LayerRecord]
    columns: list[ColumnRecord]
    notes: list[str]
    settings: dict[str, Any]
    how: dict[str, str]

    @property
    def headline(self) -> PartScore:
        """The part that says most about rows to come: test, else validation, else training."""
        return next(score for score in self.scores if score.part == self.shown)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read it back; raises ValueError for a file that is corrupt, foreign or of a newer version."""
        return read_described(path, cls, FORMAT, VERSION)


def record(
    config: Config, prepared: Prepared, model: Model, loss: Loss, history: History, parts: Mapping[str, Predicted]
) -> Recording:
    """Everything there is to say about a finished run.

    Args:
        parts: what the finished net predicts for all rows of each part.
    """
    named: dict[PartName, Predicted] = {name: parts[name] for name in get_args(PartName) if name in parts}
    shown = list(named)[-1]
    target, preprocessing, settings = prepared.target, prepared.preprocessing, config.settings
    return Recording(
        wholebatch=wholebatch.__version__,
        table=Path(settings.table).name,
        target=target.columns,
        task=target.task,
        classes=len(target.classes),
        score_name=SCORES[target.task],
        scores=[_score(name, part, loss) for name, part in named.items()],
        history=[_finite(row) for row in thin(history.epochs)],
        epochs=len(history.epochs),
        best_epoch=history.best_epoch,
        stopped_early=history.stopped_early,
        shown=shown,
        evaluation=evaluate(target, named[shown].outputs, named[shown].y),
        layers=describe_layers(model.net, preprocessing.feature_names),
        columns=[
            ColumnRecord(name=c.name, kind=c.kind, features=len(c.features), became=c.became)
            for c in preprocessing.columns
        ],
        notes=[*target.notes, *preprocessing.notes],
        settings=settings.model_dump(mode="json") | {"loss": loss.kind, "label_smoothing": loss.label_smoothing},
        how=_how(config, history),
    )


def thin(epochs: list[dict[str, float]], most: int = MOST_EPOCHS) -> list[dict[str, float]]:
    """At most ``most`` epochs, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), most)).astype(np.int64))
    return [epochs[i] for i in chosen]


def describe_layers(net: FeedForward, features: list[str]) -> list[LayerRecord]:
    """The net layer by layer, the input first."""
    a = net.architecture
    layers = [LayerRecord(name="input", size=len(features), pieces=[])]
    parts = net.parts()
    for number, part in enumerate(parts, start=1):
        linear = sum(p.numel() for p in part.linear.parameters())
        bias = "" if part.linear.bias is not None else ", no bias"
        pieces = [(f"linear {part.linear.in_features} × {part.linear.out_features}{bias}", linear)]
        if part.norm is not None:
            pieces.append((f"{a.norm} norm", sum(p.numel() for p in part.norm.parameters())))
        hidden = number < len(parts)
        if hidden:
            pieces.insert(len(pieces) if a.norm_position == "before" else 1, (a.activation, 0))
            if a.dropout:
                pieces.append((f"dropout {a.dropout:g}", 0))
        name = f"hidden {number}" if hidden else "output"
        layers.append(LayerRecord(name=name, size=part.linear.out_features, pieces=pieces))
    return layers


def _score(name: PartName, part: Predicted, loss: Loss) -> PartScore:
    weight = None if part.weight is None else torch.from_numpy(part.weight)
    value = float(loss_value(loss, torch.from_numpy(part.outputs), torch.from_numpy(part.y), weight))
    few = loss.kind in ("mse", "huber") and len(part.y) < 2
    result = np.nan if few else score(part.outputs, Data(part.outputs, part.y, part.weight), loss)
    finite = _finite({"loss": value, "score": result})
    return PartScore(part=name, rows=len(part.y), loss=finite["loss"], score=finite["score"])


def _finite(row: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in row.items()}


def _how(config: Config, history: History) -> dict[str, str]:
    """How it was run, in words."""
    settings = config.settings
    seconds = sum(row["seconds"] for row in history.epochs)
    threads = settings.threads
    return {
        "command": config.command,
        "started": config.started,
        "training took": f"{seconds:.1f} s for {len(history.epochs)} epochs",
        "seed": str(settings.seed),
        "processes": _spread(config),
        "threads": f"chosen by shape, of {os.cpu_count()}" if threads is None else str(threads),
        "engine": config.engine,
        "instruction set": config.instruction_set if config.engine == "native" else "torch's own",
        "products": config.products,
        "table": f"{config.table_shape[0]:,} rows, {config.table_shape[1]} columns",
        "data SHA-256": config.data_sha256,
        "wholebatch": config.wholebatch,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "polars": polars.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _spread(config: Config) -> str:
    """Over how many processes the mini-batch was spread, and how."""
    settings, shards = config.settings, config.settings.shards or 1
    if shards == 1:
        return str(config.processes)
    among = {
        "all": "batch norm's statistics are of all rows",
        "group": f"batch norm's statistics are of groups of {settings.group_size or 'one host'}",
        "none": "batch norm's statistics are of each process's own rows",
        "late": "the other processes' part of batch norm's statistics is of the step before",
    }[settings.sync]
    return f"{config.processes}, which share {shards} shards of the mini-batch; {among} (sync {settings.sync})"
