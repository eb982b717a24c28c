"""The run folder: what stands in it, and whether a run may begin or go on there.

::

    config.json              the settings, the table's digest, versions; written first
    checkpoint.safetensors   all a killed run goes on from; replaced after each epoch
    checkpoint.previous.safetensors   the one before, in case that one is spoiled
    metrics.jsonl            a line per epoch
    tensorboard/             event files, on request
    model.safetensors, model.json   the trained model; written last
    report.json, report.html        what the report shows, and the page
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from wholebatch.described import read_described
from wholebatch.files import is_empty, remove_parts, write_json
from wholebatch.runs.checkpoint import epochs_kept, has_checkpoint
from wholebatch.runs.names import CONFIG, DESCRIPTION, EVENTS, METRICS, NET, RECORDING, REPORT
from wholebatch.runs.settings import Settings

if TYPE_CHECKING:
    from wholebatch.runs.model import Model
    from wholebatch.runs.prepared import Prepared

FORMAT, VERSION = "wholebatch run", 3


class Config(BaseModel):
    """``config.json``.

    ``products`` are those of training, in words: their precision, and what makes them. ``launch`` is which launch began
    the run (see :class:`wholebatch.runs.ranks.Ranks`), ``processes`` how many there were.
    """

    model_config = ConfigDict(extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    wholebatch: str
    settings: Settings
    table_path: str | None
    table_shape: tuple[int, int]
    data_sha256: str
    engine: str
    instruction_set: str
    products: str = "float32"
    started: str
    command: str
    launch: str = ""
    processes: int = 1

    def check_data(self, prepared: Prepared, run: Path) -> None:
        """Raise ValueError, saying what differs, where a resumed run would not see the table it was started on."""
        if prepared.digest == self.data_sha256:
            return
        names = ("rows", "columns")
        for name, now, then in zip(names, prepared.shape, self.table_shape, strict=True):
            if now != then:
                raise ValueError(
                    f"the table has {now} {name}, but the run in {run} was started on one with {then}; "
                    "give the same table, or start a new run with another --out"
                )
        raise ValueError(
            f"the table's values are not those that the run in {run} was started on (SHA-256 of the prepared rows "
            f"{prepared.digest[:12]}…, then {self.data_sha256[:12]}…); give the same table, or start a new run with "
            "another --out"
        )


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def recording(self) -> Path:
        return self.path / RECORDING

    @property
    def has_checkpoint(self) -> bool:
        return has_checkpoint(self.path)

    @property
    def epochs_kept(self) -> int:
        """Epochs that a resumed run would not train again."""
        return epochs_kept(self.path)

    @property
    def has_model(self) -> bool:
        return (self.path / NET).exists() and (self.path / DESCRIPTION).exists()

    def check_new(self) -> None:
        """Raise ValueError or OSError where no new run may begin here."""
        if self.config.exists():
            raise ValueError(
                f"{self.path} already holds a run; go on with it (wholebatch train --resume {self.path}), "
                "or choose another --out"
            )
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(20, "a file is there, not a folder", str(self.path))
        if self.path.is_dir() and not is_empty(self.path):  # a rank may have been killed as it wrote the first file
            raise ValueError(f"{self.path} is not empty, and holds no run of wholebatch; choose another --out")

    def begin(self, config: Config) -> None:
        """Make the folder and write its configuration."""
        self.check_new()
        self.path.mkdir(parents=True, exist_ok=True)
        remove_parts(self.path)
        try:
            write_json(self.config, config.model_dump(mode="json"))
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """Take away a run that has not finished an epoch, so that nothing half-done is left."""
        if not self.has_checkpoint and not self.has_model:
            remove_parts(self.path)
            for file in (self.config, self.metrics):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.path / EVENTS, ignore_errors=True)
            if self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()

    def read_config(self) -> Config:
        """The configuration of the run that stands here.

        Raises:
            ValueError: no run stands here, or its configuration is corrupt or of a newer format.
        """
        if not self.config.exists():
            what = "holds no run (no config.json)" if self.path.is_dir() else "does not exist"
            raise ValueError(f"{self.path} {what}; name the folder that `wholebatch train` printed")
        return read_described(self.config, Config, FORMAT, VERSION)

    def read_model(self) -> Model:
        """The trained model; raises ValueError where the run is not finished, or a file is corrupt."""
        if not self.has_model:
            if self.config.exists():
                raise ValueError(
                    f"the run in {self.path} is not finished, so it has no model yet; "
                    f"finish it: wholebatch train --resume {self.path}"
                )
            self.read_config()
        from wholebatch.runs.model import Model

        return Model.load(self.path)
