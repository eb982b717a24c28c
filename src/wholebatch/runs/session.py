"""A training run from its table to its report, new or resumed.

1. read the table, prepare it, build the net: whatever is wrong is found before a file is written
2. ``config.json``
3. after each epoch: a line of metrics, then the checkpoint (what a killed run goes on from)
4. ``model.safetensors``, ``model.json``, ``report.json``, ``report.html``

A run that is killed between any two of these goes on from the last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

import wholebatch
from wholebatch import kernels
from wholebatch.feedforward import FeedForward, Loss, State
from wholebatch.feedforward.data import batch_offsets
from wholebatch.feedforward.engines import check_fit
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.training import fit
from wholebatch.files import remove_parts
from wholebatch.runs.checkpoint import load_checkpoint, save_checkpoint
from wholebatch.runs.folder import EVENTS, Config, Run
from wholebatch.runs.metrics import Metrics, check_tensorboard
from wholebatch.runs.model import Model
from wholebatch.runs.prepared import Prepared, class_weights, prepare
from wholebatch.runs.recording import Recording, record
from wholebatch.runs.report import write_report
from wholebatch.runs.settings import Settings
from wholebatch.tables import read_table

Row = dict[str, float]


@dataclass(frozen=True)
class Session:
    """A run that is ready to train: everything checked, the folder made."""

    run: Run
    config: Config
    prepared: Prepared
    net: FeedForward
    loss: Loss
    state: State | None
    tensorboard: bool

    @property
    def settings(self) -> Settings:
        return self.config.settings

    @property
    def epochs_done(self) -> int:
        return 0 if self.state is None else len(self.state.history.epochs)

    @property
    def complete(self) -> bool:
        """Whether all epochs are done, or early stopping ended the run."""
        stopped = self.state is not None and self.state.history.stopped_early
        return stopped or self.epochs_done >= self.settings.epochs

    def train(
        self,
        progress: Callable[[int, int, float], None] | None = None,
        after_epoch: Callable[[Row], None] | None = None,
    ) -> Recording:
        """Train the epochs that are left, save the model, write the report.

        Args:
            progress: called a few times a second with (epoch from 1, examples done in it, mean loss so far).
            after_epoch: called with each epoch's line of metrics, once it is on the disk.

        Raises:
            NonFiniteLossError: with epoch, step and layer.
            OSError: a file that cannot be written.
            KeyboardInterrupt: Ctrl-C. What was finished is kept; a run without a finished epoch leaves no folder.
        """
        history = [] if self.state is None else self.state.history.epochs
        events = self.run.path / EVENTS if self.tensorboard else None
        held = self.prepared.validation
        try:
            with Metrics(self.run.metrics, events, history) as metrics:

                def keep(state: State) -> None:
                    row = state.history.epochs[-1]
                    metrics.add(row)
                    save_checkpoint(self.run.path, state)
                    if after_epoch is not None:
                        after_epoch(row)

                ended = fit(
                    self.net,
                    self.prepared.training.x,
                    self.prepared.training.y,
                    sample_weight=self.prepared.training.weight,
                    validation=None if held is None else held.as_tuple(),
                    loss=self.loss,
                    optimizer=self.settings.make_optimizer(),
                    training=self.settings.make_training(),
                    n_threads=self.settings.threads,
                    split=self.settings.split,
                    engine=self.config.engine,
                    resume=self.state,
                    progress=progress,
                    after_epoch=keep,
                )
        except BaseException:
            self.run.forget()
            raise
        model = Model(
            self.net, self.prepared.preprocessing, self.prepared.target, self.settings.model_dump(mode="json")
        )
        model.save(self.run.path)
        recording = record(self.config, self.prepared, model, self.loss, ended)
        recording.save(self.run.recording)
        write_report(recording, self.run.report)
        return recording


def begin(settings: Settings, out: Path, *, tensorboard: bool = False, command: str = "(from Python)") -> Session:
    """Check everything, then make the folder ``out`` for a new run.

    Raises:
        ValueError: the table (TableError) or a setting is wrong, ``out`` holds a run, TensorBoard is not installed.
        OSError: the table cannot be read or the folder cannot be written.
    """
    run = Run(out)
    run.check_new()
    if tensorboard:
        check_tensorboard()
    prepared, net, loss = _build(settings)
    path = Path(settings.table)
    config = Config(
        wholebatch=wholebatch.__version__,
        settings=settings,
        table_path=str(path.resolve()) if path.exists() else None,
        table_shape=prepared.shape,
        data_sha256=prepared.digest,
        engine=_engine(settings),
        instruction_set=kernels.instruction_set(),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=command,
    )
    run.begin(config)
    return Session(run, config, prepared, net, loss, None, tensorboard)


def resume(
    out: Path, change: Callable[[Settings], Settings] = lambda recorded: recorded, *, tensorboard: bool = False
) -> Session:
    """Go on with the run in ``out``, from its last whole epoch.

    Args:
        change: gives the settings that the person asked for now, from those recorded; only ``table``, ``threads`` and
            ``split`` may differ.

    Raises:
        ValueError: no run, a corrupt file, a setting or a table that is not the one the run was started with.
        OSError: a file cannot be read.
    """
    run = Run(out)
    config = run.read_config()
    wanted = change(config.settings)
    for name, (then, now) in config.settings.differences(wanted).items():
        raise ValueError(
            f"the run in {out} was started with {_option(name, then)}, not with {_option(name, now)}: a run goes on "
            "with the settings it was started with; leave the option out, or start a new run with another --out"
        )
    if wanted.table == config.settings.table and config.table_path is not None:
        wanted = wanted.model_copy(update={"table": config.table_path})
    if tensorboard:
        check_tensorboard()
    state = load_checkpoint(out)
    prepared, net, loss = _build(wanted)
    config.check_data(prepared, out)
    remove_parts(out)
    here = kernels.instruction_set()
    if config.engine == "native" and here != config.instruction_set:
        warnings.warn(
            f"the run in {out} was started with {config.instruction_set} instructions and goes on with {here}: "
            "the last bits may differ from those of a run that was not stopped",
            RuntimeWarning,
            stacklevel=2,
        )
    config = config.model_copy(update={"settings": wanted.model_copy(update={"table": config.settings.table})})
    return Session(run, config, prepared, net, loss, state, tensorboard)


def _build(settings: Settings) -> tuple[Prepared, FeedForward, Loss]:
    """The table, the net with its first parameters, and the loss; every setting is checked on the way."""
    settings.make_optimizer()
    training = settings.make_training()
    settings.architecture(1, 1)
    if settings.patience is not None and settings.validation_fraction == 0:
        raise ValueError(f"--patience {settings.patience} needs validation rows to watch; --validation-fraction is 0")
    prepared = prepare(read_table(settings.table), settings)
    loss = settings.make_loss(prepared.target.task, class_weights(prepared, settings))
    architecture = settings.architecture(len(prepared.preprocessing.feature_names), prepared.target.out_features)
    offsets = batch_offsets(len(prepared.training), training.batch_size, architecture)
    check_fit(
        architecture,
        settings.make_optimizer(),
        int(np.diff(offsets).max()),
        torch.get_default_dtype(),
        n_threads=settings.threads,
        engine=settings.engine,
        held=0 if prepared.validation is None else len(prepared.validation),
        net=net_bytes(architecture, torch.get_default_dtype()) * (1 if settings.patience is None else 2),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = FeedForward.of(architecture)
    return prepared, net, loss


def _engine(settings: Settings) -> str:
    """The engine that ``auto`` means here, so that a resumed run takes the same."""
    if settings.engine != "auto":
        return settings.engine
    return "native" if kernels.native_available(say=True) else "reference"


def _option(name: str, value: object) -> str:
    """A setting as it stands on the command line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    flag = name.replace("_", "-")
    return f"--{flag} {text}" if value is not None and value != () else f"no --{flag}"
