"""A training run from its table to its report, new or resumed, by one process or by several that share mini-batches.

1. read the table, prepare it, build the net: whatever is wrong is found before a file is written
2. ``config.json``
3. after each epoch: a line of metrics, then the checkpoint (what a killed run goes on from)
4. ``model.safetensors``, ``model.json``, ``report.json``, ``report.html``

A run that is killed between any two of these goes on from the last checkpoint and ends with the same bits.

Of several processes (ranks) the first writes all files; what it reads of them it tells the others. Nobody waits for a
checkpoint: while the first rank writes it, the others go on to the first meeting of the next epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

import wholebatch
from wholebatch import kernels
from wholebatch.feedforward import FeedForward, Loss, State
from wholebatch.feedforward.data import batch_offsets
from wholebatch.feedforward.engines import check_fit, describe_products, engine_kind, is_on_cpu
from wholebatch.feedforward.footprint import net_bytes
from wholebatch.feedforward.training import History, fit
from wholebatch.files import remove_parts
from wholebatch.runs.checkpoint import FILE, find_checkpoint, put_spoiled_aside, read_checkpoint, save_checkpoint
from wholebatch.runs.folder import Config, Run
from wholebatch.runs.metrics import Metrics, check_tensorboard
from wholebatch.runs.model import Model
from wholebatch.runs.names import EVENTS
from wholebatch.runs.predicted import predict
from wholebatch.runs.prepared import Prepared, class_weights, prepare_spread
from wholebatch.runs.ranks import Ranks
from wholebatch.runs.recording import Recording, record
from wholebatch.runs.report import write_report
from wholebatch.runs.settings import Settings

Row = dict[str, float]


@dataclass(frozen=True)
class Session:
    """A run that is ready to train: everything checked, the folder made.

    Attributes:
        prepared: the rows of this rank, and what is known of all.
    """

    run: Run
    config: Config
    prepared: Prepared
    net: FeedForward
    loss: Loss
    state: State | None
    tensorboard: bool
    ranks: Ranks

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
    ) -> Recording | None:
        """Train the epochs that are left, save the model, write the report.

        Args:
            progress: called a few times a second with (epoch from 1, examples done in it, mean loss so far).
            after_epoch: called with each epoch's line of metrics, once it is on the disk. Both on the first rank alone.

        Returns:
            What the report shows; None on the other ranks.

        Raises:
            NonFiniteLossError: with epoch, step and layer.
            OSError: a file that cannot be written.
            MeetingError: another rank is missing.
            KeyboardInterrupt: Ctrl-C. What was finished is kept; a run without a finished epoch leaves no folder.
        """
        try:
            with self._metrics() as metrics:
                ended = self._fit(metrics, progress, after_epoch)
            return self._finish(ended)
        except BaseException:
            if self.ranks.first:
                self.run.forget()
            raise

    def _metrics(self) -> AbstractContextManager[Metrics | None]:
        if not self.ranks.first:
            return nullcontext()
        history = [] if self.state is None else self.state.history.epochs
        return Metrics(self.run.metrics, self.run.path / EVENTS if self.tensorboard else None, history)

    def _fit(
        self,
        metrics: Metrics | None,
        progress: Callable[[int, int, float], None] | None,
        after_epoch: Callable[[Row], None] | None,
    ) -> History:
        held = self.prepared.validation

        def keep(state: State) -> None:
            assert metrics is not None
            row = state.history.epochs[-1]
            metrics.add(row)
            save_checkpoint(self.run.path, state)
            if after_epoch is not None:
                after_epoch(row)

        return fit(
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
            matmul_precision=self.settings.matmul_precision,
            device=self.settings.device,
            spread=None if self.ranks.count == (self.settings.shards or 1) == 1 else self.settings.make_spread(),
            process_group=None if self.ranks.count == 1 else self.ranks.group,
            resume=self.state,
            progress=progress if self.ranks.first else None,
            after_epoch=None if metrics is None else keep,
        )

    def _finish(self, ended: History) -> Recording | None:
        settings, prepared = self.settings, self.prepared
        model = Model(self.net, prepared.preprocessing, prepared.target, settings.model_dump(mode="json"))
        parts = predict(model, prepared, settings.shards or 1, self.ranks)
        if not self.ranks.first:
            return None
        model.save(self.run.path)
        recording = record(self.config, self.prepared, model, self.loss, ended, parts)
        recording.save(self.run.recording)
        write_report(recording, self.run.report)
        return recording


def begin(
    settings: Settings,
    out: Path,
    *,
    tensorboard: bool = False,
    command: str = "(from Python)",
    ranks: Ranks | None = None,
) -> Session:
    """Check everything, then make the folder ``out`` for a new run.

    Args:
        ranks: the processes that train it together, each of which calls this with the same arguments; None: this one.

    Raises:
        ValueError: the table (TableError) or a setting is wrong, ``out`` holds a run, TensorBoard is not installed, the
            ranks cannot train together.
        OSError: the table cannot be read or the folder cannot be written.
        MeetingError: another rank is missing.
    """
    ranks, run = ranks or Ranks(), Run(out)
    settings = settings.model_copy(update={"shards": settings.make_spread().shards_for(ranks.count)})

    def check() -> bytes:
        run.check_new()
        if tensorboard:
            check_tensorboard()
        return b""

    ranks.agree_first(check, "the run folder")
    prepared, net, loss = _build(settings, ranks)
    path = Path(settings.table)
    config = Config(
        wholebatch=wholebatch.__version__,
        settings=settings,
        table_path=str(path.resolve()) if path.exists() else None,
        table_shape=prepared.shape,
        data_sha256=prepared.digest,
        engine=_engine(settings),
        instruction_set=kernels.instruction_set(),
        products=describe_products(settings.engine, settings.matmul_precision, settings.device),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=command,
        launch=ranks.launch,
        processes=ranks.count,
    )
    _check_alike(ranks, config)

    def make() -> bytes:
        run.begin(config)
        return b""

    ranks.agree_first(make, "the run folder")
    return Session(run, config, prepared, net, loss, None, tensorboard, ranks)


def resume(
    out: Path,
    change: Callable[[Settings], Settings] = lambda recorded: recorded,
    *,
    tensorboard: bool = False,
    ranks: Ranks | None = None,
) -> Session:
    """Go on with the run in ``out``, from its last whole epoch.

    Args:
        change: gives the settings that the person asked for now, from those recorded; only ``table``, ``threads`` and
            ``split`` may differ.
        ranks: as in :func:`begin`; as many as divide the shards that the run was started with.

    Raises:
        ValueError: no run, corrupt files, a setting or a table that is not the one the run was started with, ranks that
            cannot train together.
        OSError: a file cannot be read.
        MeetingError: another rank is missing.
    """
    ranks, run = ranks or Ranks(), Run(out)
    config = Config.model_validate_json(
        ranks.agree_first(lambda: run.read_config().model_dump_json().encode(), "the run folder")
    )
    wanted = _wanted(config, change, out, ranks)
    if tensorboard and ranks.first:
        check_tensorboard()
    state, fault = _find_state(run, ranks)
    prepared, net, loss = _build(wanted, ranks)

    def check() -> bytes:
        config.check_data(prepared, out)
        remove_parts(out)
        if fault:
            put_spoiled_aside(out)
        return b""

    ranks.agree_first(check, "the run folder")
    here, products = kernels.instruction_set(), describe_products(config.engine, wanted.matmul_precision, wanted.device)
    if ranks.first:
        _warn_of_other_bits(config, here, products, out)
    if fault and ranks.first:
        kept = 0 if state is None else len(state.history.epochs)
        warnings.warn(
            f"{fault}; the run goes on from the checkpoint before it, after epoch {kept}", RuntimeWarning, stacklevel=2
        )
    settings = wanted.model_copy(update={"table": config.settings.table})
    config = config.model_copy(update={"settings": settings, "processes": ranks.count})
    now = {"instruction_set": here, "products": products, "data_sha256": prepared.digest}
    _check_alike(ranks, config.model_copy(update=now))
    return Session(run, config, prepared, net, loss, state, tensorboard, ranks)


def _warn_of_other_bits(config: Config, instruction_set: str, products: str, out: Path) -> None:
    """Where what a resumed run goes on with is not what it was started with."""
    changes = []
    if config.engine == "native" and instruction_set != config.instruction_set:
        changes.append((f"{config.instruction_set} instructions", instruction_set))
    if products != config.products:
        changes.append((f"products in {config.products}", products))
    for then, now in changes:
        warnings.warn(
            f"the run in {out} was started with {then} and goes on with {now}: "
            "the last bits may differ from those of a run that was not stopped",
            RuntimeWarning,
            stacklevel=3,
        )


def _wanted(config: Config, change: Callable[[Settings], Settings], out: Path, ranks: Ranks) -> Settings:
    """The settings that a resumed run goes on with."""
    wanted = change(config.settings)
    for name, (then, now) in config.settings.differences(wanted).items():
        raise ValueError(
            f"the run in {out} was started with {_option(name, then)}, not with {_option(name, now)}: a run goes on "
            "with the settings it was started with; leave the option out, or start a new run with another --out"
        )
    if ranks.count != config.processes and config.settings.sync != "all":
        raise ValueError(
            f"the run in {out} was started with {config.processes} processes, not with {ranks.count}: with --sync "
            f"{config.settings.sync} the result depends on them; go on with --processes {config.processes}"
        )
    wanted = wanted.model_copy(update={"shards": config.settings.shards or 1})
    wanted.make_spread().shards_for(ranks.count)
    if wanted.table == config.settings.table and config.table_path is not None:
        wanted = wanted.model_copy(update={"table": config.table_path})
    return wanted


def _find_state(run: Run, ranks: Ranks) -> tuple[State | None, str]:
    """The last state that is whole, and what is wrong with a newer one; the first rank tells the others."""
    faults: list[str] = []

    def find() -> bytes:
        found = find_checkpoint(run.path)
        faults.append(found.fault)
        return found.content or b""

    content = ranks.agree_first(find, "the checkpoint")
    state = read_checkpoint(content, run.path / FILE) if content else None
    return state, faults[0] if faults else ""


def _build(settings: Settings, ranks: Ranks) -> tuple[Prepared, FeedForward, Loss]:
    """The table, the net with its first parameters, and the loss; every setting is checked on the way."""
    ranks.agree(lambda: _check_engine(settings, ranks), "the device")
    settings.make_optimizer()
    training = settings.make_training()
    settings.architecture(1, 1)
    if settings.patience is not None and settings.validation_fraction == 0:
        raise ValueError(f"--patience {settings.patience} needs validation rows to watch; --validation-fraction is 0")
    shards = settings.shards or 1
    prepared = prepare_spread(settings.table, settings, shards, ranks.group)
    rows = len(prepared.whole["training"])
    if rows < shards:
        raise ValueError(f"there are {rows} rows to train on, fewer than {shards} shards; ask for fewer with --shards")
    loss = settings.make_loss(prepared.target.task, class_weights(prepared, settings))
    architecture = settings.architecture(len(prepared.preprocessing.feature_names), prepared.target.out_features)
    offsets = batch_offsets(rows, training.batch_size, architecture)

    def check() -> None:
        check_fit(
            architecture,
            settings.make_optimizer(),
            int(np.diff(offsets).max()) // ranks.count,
            torch.get_default_dtype(),
            n_threads=settings.threads,
            engine=settings.engine,
            matmul_precision=settings.matmul_precision,
            device=settings.device,
            held=0 if prepared.validation is None else len(prepared.validation),
            net=net_bytes(architecture, torch.get_default_dtype()) * (1 if settings.patience is None else 2),
        )

    ranks.agree(check, "the memory")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = FeedForward.of(architecture)
    return prepared, net, loss


def _check_alike(ranks: Ranks, config: Config) -> None:
    """Refuse ranks that would not compute the same: of other versions, instructions, settings or tables."""
    facts = {
        "wholebatch": config.wholebatch,
        "torch": torch.__version__,
        "the engine": config.engine,
        "the instruction set": config.instruction_set,
        "the products": config.products,
        "data of the SHA-256": config.data_sha256,
    }
    settings = config.settings.model_dump(mode="json", exclude={"threads", "split", "table"})
    ranks.check_alike(facts | {f"the setting {name}": value for name, value in settings.items()}, "versions")


def _check_engine(settings: Settings, ranks: Ranks) -> None:
    """Refuse an engine or a device that is not here, before a table is read."""
    engine_kind(settings.engine, settings.device)
    if ranks.count > 1 and not is_on_cpu(settings.device):
        raise ValueError(
            f"--device {settings.device} is for one process, and there are {ranks.count}; leave --processes out, or "
            "train FeedForward nets from Python over a process group that serves GPUs (docs/gpu.md)"
        )


def _engine(settings: Settings) -> str:
    """The engine that ``auto`` means here, so that a resumed run takes the same."""
    if settings.engine != "auto":
        return settings.engine
    if not is_on_cpu(settings.device):
        return "device"
    return "native" if kernels.native_available(say=True) else "reference"


def _option(name: str, value: object) -> str:
    """A setting as it stands on the command line."""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    flag = name.replace("_", "-")
    return f"--{flag} {text}" if value is not None and value != () else f"no --{flag}"
