"""``python -m benchmarks gpu``: one layer of batch norm on a GPU, or training steps there (``--steps``), ours and the
peers', interleaved in one run."""

from __future__ import annotations

import platform
import random
import shlex
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from benchmarks import gpu_steps, gpu_tables, tables
from benchmarks.gpu_cases import DTYPES, SHAPES, GpuCase, cases
from benchmarks.layer_cases import NORMS
from benchmarks.options import Names, OutFile
from benchmarks.rounds import BURST_SECONDS, Contender, Timings
from benchmarks.shapes import SHAPES as STEPS
from benchmarks.sheet import Sheet
from benchmarks.talk import Talk
from wholebatch import files
from wholebatch.devices import tell_no_gpu

# Not imported from where they are made, which would import torch for --help.
PEERS = ("torch", "sync", "compile")


@click.command()
@click.option("--shapes", type=Names("shape", tuple(SHAPES)), default=",".join(SHAPES), help="[default: all]")
@click.option("--steps", type=Names("step", tuple(STEPS)), help="Training steps of these shapes, in place of layers.")
@click.option("--dtypes", type=Names("dtype", tuple(DTYPES)), default=",".join(DTYPES), show_default=True)
@click.option("--norms", type=Names("norm", NORMS), default="batch+relu", show_default=True)
@click.option(
    "--peers",
    type=Names("peer", PEERS, may_be_none=True),
    default=",".join(PEERS),
    show_default=True,
    help="'none' measures wholebatch alone.",
)
@click.option("--planes", is_flag=True, help="Contiguous (N, C, H, W) in place of channels last.")
@click.option("--graphs/--no-graphs", default=True, show_default=True, help="Replayed as CUDA graphs, too.")
@click.option("--repeats", type=click.IntRange(1), default=20, show_default=True, help="Rounds of a burst of each.")
@click.option("--json", "json_path", type=OutFile(), help="Write the rows to this file.")
@click.option("--markdown", type=OutFile(), help="Write all tables to this file.")
def gpu(
    shapes: tuple[str, ...],
    steps: tuple[str, ...] | None,
    dtypes: tuple[str, ...],
    norms: tuple[str, ...],
    peers: tuple[str, ...],
    planes: bool,
    graphs: bool,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Time one layer in training on a GPU, forward and backward: batch norm, with ReLU, and with addition and ReLU.

    'torch' is torch eager, 'sync' its SyncBatchNorm in a group of one, 'compile' is torch.compile. Each is launched as
    a person gets it and, with graphs, replayed as one CUDA graph, which leaves the kernels alone. The bandwidth of a
    copy within the card's memory, measured in the same run, is what times are held against. Needs a GPU.

    With --steps: whole training steps of a net, by wholebatch's engine for GPUs (as it is, layer by layer, and without
    CUDA graphs), torch eager and torch.compile; of the other options --peers, --repeats and the files count.
    """
    device = find_device()
    if steps:
        measure_steps(steps, peers, device, repeats, json_path, markdown)
        return
    from benchmarks.gpu_timing import copy_bandwidth

    names = ["wholebatch", *peers]
    sheets: list[Sheet] = []
    found: list[dict[str, Any]] = []
    with Talk() as talk:
        clock = make_clock(device)
        talk.progress("measuring the bandwidth of a copy")
        bandwidth = copy_bandwidth(clock, device)
        header = [*describe(device), f"bandwidth of a copy: {bandwidth / 1e9:,.0f} GB/s", f"{repeats} rounds"]
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        if "sync" in names:
            join_alone(device, talk)
        for case in cases(shapes, dtypes, norms, device, planes):
            timings = measure(case, names, graphs, clock, repeats, talk)
            found += gpu_tables.rows(case, timings, bandwidth)
            for sheet in (
                gpu_tables.times(case, timings, bandwidth),
                tables.ratios(str(case), gpu_tables.ratios(case, timings, bandwidth, cache_of(device))),
            ):
                sheets.append(sheet)
                talk.out.print(sheet.to_rich())
    talk.out.print(gpu_tables.LEGEND, highlight=False, markup=False)
    _write(json_path, markdown, found, [*header, *talk.notes], sheets, gpu_tables.LEGEND)


def measure_steps(
    steps: tuple[str, ...],
    peers: tuple[str, ...],
    device: str,
    repeats: int,
    json_path: Path | None,
    markdown: Path | None,
) -> None:
    """Training steps of these shapes."""
    sheets: list[Sheet] = []
    found: list[dict[str, Any]] = []
    header = [*describe(device), f"{repeats} rounds"]
    with Talk() as talk:
        for line in header:
            talk.out.print(line, highlight=False, markup=False)
        for name in steps:
            shape = STEPS[name]
            timings = gpu_steps.measure(shape, ["wholebatch", *peers], device, repeats, talk)
            found += tables.rows_of(timings)
            for sheet in (gpu_steps.times(shape, timings), tables.ratios(name, gpu_steps.ratios(shape, timings))):
                sheets.append(sheet)
                talk.out.print(sheet.to_rich())
    talk.out.print(gpu_steps.LEGEND, highlight=False, markup=False)
    _write(json_path, markdown, found, [*header, *talk.notes], sheets, gpu_steps.LEGEND)


def _write(
    json_path: Path | None,
    markdown: Path | None,
    found: list[dict[str, Any]],
    header: list[str],
    sheets: list[Sheet],
    legend: str,
) -> None:
    if json_path is not None:
        files.write_json(json_path, found)
    if markdown is not None:
        parts = ["\n".join(f"- {line}" for line in header), *(sheet.to_markdown() for sheet in sheets)]
        files.write(markdown, "\n\n".join([*parts, legend]) + "\n")


def find_device() -> str:
    """The GPU to measure.

    Raises:
        ValueError: there is none.
    """
    import torch

    if torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    raise ValueError(f"this measures a GPU, and {tell_no_gpu()}: run it on a machine with one")


def make_clock(device: str) -> Any:
    """What times work on this device."""
    from benchmarks.gpu_timing import Events, Host

    return Host() if device == "cpu" else Events()


def cache_of(device: str) -> int:
    """Bytes of the card's second-level cache; 0 where it is not told."""
    import torch

    return 0 if device == "cpu" else int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))


def describe(device: str) -> list[str]:
    """The lines above the tables: card, versions, date, command."""
    import torch

    card = platform.processor() or "CPU"
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        card = (
            f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
            f"{properties.total_memory / (1 << 30):.0f} GiB, second-level cache {cache_of(device) / (1 << 20):.0f} MiB"
        )
    libraries = " · ".join(f"{name} {_version(name)}" for name in ("wholebatch", "torch", "triton"))
    return [
        f"{card}; {platform.system()} {platform.release()}",
        f"{libraries} · CUDA {torch.version.cuda} · Python {platform.python_version()}",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, python -m benchmarks {shlex.join(sys.argv[1:])}",
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def join_alone(device: str, talk: Talk) -> None:
    """A process group of this process alone, which SyncBatchNorm asks for; without one it is told and left out."""
    import torch.distributed as dist

    if device != "cpu" and not dist.is_initialized():
        try:
            dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError) as error:
            talk.note(f"there is no process group for SyncBatchNorm: {error}")


def measure(case: GpuCase, names: list[str], graphs: bool, clock: Any, repeats: int, talk: Talk) -> Timings:
    """Seconds for one layer, by contender and round; a contender that fails is told and left out."""
    timings, ready = Timings(), dict[Contender, tuple[Callable[[], object], int]]()
    for contender, step in _build(case, names, graphs, talk):
        once = clock.seconds(step, 1)
        ready[contender] = step, max(1, round(BURST_SECONDS / max(once, 1e-6)))
    order = list(ready)
    timings.seconds = {contender: [float("nan")] * repeats for contender in order}
    timings.notes = dict.fromkeys(order, "")
    shuffle = random.Random(0).shuffle
    for turn in range(repeats):
        talk.progress(f"{case}: round {turn + 1} of {repeats}")
        shuffle(order)
        for contender in order:
            step, times = ready[contender]
            timings.seconds[contender][turn] = clock.seconds(step, times)
    timings.divide(case.layers)
    return timings


def _build(
    case: GpuCase, names: list[str], graphs: bool, talk: Talk
) -> Iterator[tuple[Contender, Callable[[], object]]]:
    """Warm steps of each system, launched and as a graph."""
    from benchmarks.gpu_timing import WARM, capture
    from benchmarks.systems.layers.on_gpu import SYSTEMS

    for name in names:
        talk.progress(f"{case}: building {name}")
        ways = (name, f"{name}, graph") if graphs else (name,)
        for way in ways:
            try:
                step: Callable[[], object] = SYSTEMS[name](case).step
                for _ in range(WARM):
                    step()
                if way != name:
                    step = capture(step)
            except Exception as error:  # a peer that cannot be measured must not end the measurement
                talk.note(f"{way} is left out of {case}: {type(error).__name__}: {' '.join(str(error).split())}")
                continue
            yield Contender(str(case), way, case.norm, 1), step
