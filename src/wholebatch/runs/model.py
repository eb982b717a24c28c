"""A trained model on the disk: ``model.safetensors`` (the net) and ``model.json`` (all else). Loading executes nothing.

``model.json`` names the SHA-256 of ``model.safetensors``, so a file that was cut short, or a pair that does not belong
together, is found before a number is read from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict

import wholebatch
from wholebatch.described import one_line, read_described
from wholebatch.feedforward import Architecture, FeedForward
from wholebatch.files import sha256, write, write_json
from wholebatch.runs.names import DESCRIPTION, NET
from wholebatch.tables import Preprocessing, Target

FORMAT, VERSION = "wholebatch model", 1
ROWS_AT_ONCE = 8192


class _Description(BaseModel):
    """``model.json``."""

    model_config = ConfigDict(extra="forbid")

    format: str
    version: int
    wholebatch: str
    net_sha256: str
    architecture: Architecture
    preprocessing: dict[str, Any]
    target: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A net with what it needs to be used on a table."""

    net: FeedForward
    preprocessing: Preprocessing
    target: Target
    settings: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write both files, each whole or not at all.

        Raises:
            OSError: the folder cannot be written, or the disk is full.
        """
        state = {name: value.detach().contiguous() for name, value in self.net.state_dict().items()}
        content = safetensors.torch.save(state)
        description = _Description(
            format=FORMAT,
            version=VERSION,
            wholebatch=wholebatch.__version__,
            net_sha256=sha256(content),
            architecture=self.net.architecture,
            preprocessing=self.preprocessing.to_dict(),
            target=self.target.to_dict(),
            settings=self.settings,
        )
        write(folder / NET, content)
        write_json(folder / DESCRIPTION, {**description.model_dump(), "architecture": asdict(self.net.architecture)})

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read and check both files.

        Raises:
            ValueError: a file that is corrupt, cut short, of a newer format or not of wholebatch, or files that do not
                belong together.
            OSError: a file that is missing or cannot be read.
        """
        path = folder / DESCRIPTION
        description = read_described(path, _Description, FORMAT, VERSION)
        content = (folder / NET).read_bytes()
        if sha256(content) != description.net_sha256:
            raise ValueError(
                f"{folder / NET} is corrupt, cut short or of another run: its SHA-256 is {sha256(content)[:12]}…, "
                f"{DESCRIPTION} says {description.net_sha256[:12]}…; take both files from one run"
            )
        try:
            net = _net(description.architecture, safetensors.torch.load(content))
            preprocessing = Preprocessing.from_dict(description.preprocessing)
            target = Target.from_dict(description.target)
        except (ValueError, TypeError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(f"{path} is corrupt: {one_line(error)}; train the model again") from error
        if target.out_features != description.architecture.out_features:
            raise ValueError(
                f"{path} is corrupt: its target needs {target.out_features} outputs, "
                f"its net has {description.architecture.out_features}; train the model again"
            )
        if len(preprocessing.feature_names) != description.architecture.in_features:
            raise ValueError(
                f"{path} is corrupt: its columns give {len(preprocessing.feature_names)} features, "
                f"its net takes {description.architecture.in_features}; train the model again"
            )
        return cls(net, preprocessing, target, description.settings)

    @property
    def text_columns(self) -> list[str]:
        """Columns that :func:`read_table` must keep as text, as they were when the model was trained."""
        return [*self.preprocessing.text_columns, *self.target.text_columns]

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """The net's outputs in eval mode: ``(N, F)`` to ``(N, out_features)``: logits, or scaled values."""
        return outputs(self.net, x)

    def predict(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A row per row of ``frame``: classes with probabilities, or values, or labels.

        Raises:
            TableError: a column that the model needs is missing, or has another kind of content.
        """
        return self.target.decode(self.outputs(self.preprocessing.transform(frame)))


@torch.no_grad()
def outputs(net: FeedForward, x: np.ndarray) -> np.ndarray:
    """``(N, F)`` to ``(N, out_features)`` in eval mode, some thousand rows at a time."""
    net.eval()
    pieces = [net(torch.from_numpy(x[i : i + ROWS_AT_ONCE])).numpy() for i in range(0, len(x), ROWS_AT_ONCE)]
    return np.concatenate(pieces) if pieces else np.empty((0, net.architecture.out_features), np.float32)


def _net(architecture: Architecture, state: dict[str, torch.Tensor]) -> FeedForward:
    """The net around ``state``'s own tensors; shapes and dtypes are compared before any memory is taken.

    Raises:
        ValueError: a tensor that is missing, unknown, of another shape or dtype, or not finite.
    """
    net = FeedForward.of(architecture, device="meta")
    wanted = {n: (tuple(t.shape), t.dtype) for n, t in net.state_dict().items()}
    found = {n: (tuple(t.shape), t.dtype) for n, t in state.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{NET} holds {name} as {found.get(name)}, the net needs {wanted.get(name)}")
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"{NET} holds a value in {name} that is not finite")
    net.load_state_dict(state, assign=True)
    return net.eval()
