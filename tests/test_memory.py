"""What does not fit in memory is refused, with the numbers, before any of it is taken; and the numbers are right."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from processes import start
from wholebatch import FeedForward, Optimizer, Training
from wholebatch.feedforward import memory
from wholebatch.feedforward.data import prepare_inputs
from wholebatch.feedforward.engines import check_fit, check_predict
from wholebatch.feedforward.footprint import native_need, net_bytes, reference_need
from wholebatch.feedforward.memory import Need, free_bytes, human
from wholebatch.feedforward.settings import Architecture
from wholebatch.kernels import native_available
from wholebatch.sklearn import MLPClassifier, MLPRegressor

needs_native = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.standard_normal((4000, 50)).astype("float32"), np.arange(4000) % 3
Pretend = Callable[[int | None], None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Makes the system say that so many bytes are free."""
    return lambda free: monkeypatch.setattr(memory, "free_bytes", lambda: free)


def fit_net(engine: str) -> None:
    net = FeedForward(50, (600,), 3, norm="none")
    net.fit(X, Y, training=Training(epochs=1, batch_size=2000), engine=engine)


def needed_by_net(engine: str) -> int:
    """Of :func:`fit_net`, of the engine alone: the net is there already, the table needs no copy."""
    architecture = Architecture(50, (600,), 3, norm="none")
    if engine == "reference":
        return reference_need(architecture, Optimizer(), 2000, torch.float32).total
    from wholebatch.feedforward.threads import choose_threads

    threads = choose_threads(architecture, 2000)
    return native_need(architecture, Optimizer(), 2000, torch.float32, threads).total


def test_what_just_fits_is_trained_and_one_byte_less_is_refused(engine: str, pretend: Pretend):
    needed = needed_by_net(engine)
    assert needed > memory.SMALL
    pretend(needed)
    fit_net(engine)
    pretend(needed - 1)
    with pytest.raises(ValueError, match="sizes 50-600-3 by mini-batches of 2,000 needs") as refused:
        fit_net(engine)
    said = str(refused.value)
    assert f"{needed:,} bytes" in said
    assert f"{needed - 1:,} bytes" in said
    assert "a smaller batch size (it is 2,000)" in said
    assert "float32 in place of" not in said


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (lambda: MLPClassifier((900, 900)).fit(X, Y), ("50-900-900-3", "mini-batches of 200", "narrower")),
        (
            lambda: MLPClassifier((900, 900)).partial_fit(X, Y, classes=[0, 1, 2]),
            ("50-900-900-3", "mini-batches of 200"),
        ),
        (lambda: MLPClassifier((900,), solver="lbfgs").fit(X, Y), ("mini-batches of 4,000", "float32", "it is 4,000")),
        (lambda: MLPRegressor(hidden_layer_sizes=(900, 900), norm=None).fit(X, Y), ("50-900-900-1", "narrower")),
    ],
)
def test_the_estimators_refuse_before_they_take(
    estimate: Callable[[], Any], words: tuple[str, ...], pretend: Pretend, monkeypatch: pytest.MonkeyPatch
):
    def taken(*_: object) -> None:
        raise AssertionError("the parameters were made")

    monkeypatch.setattr(MLPClassifier, "_initialize", taken)
    monkeypatch.setattr(MLPRegressor, "_initialize", taken)
    pretend(5_000_000)
    with pytest.raises(ValueError, match=r"needs .* 5,000,000 bytes") as refused:
        estimate()
    for word in words:
        assert word in str(refused.value)


def test_partial_fit_does_not_ask_for_what_it_has(pretend: Pretend):
    model = MLPClassifier((600, 600)).partial_fit(X, Y, classes=[0, 1, 2])
    pretend(memory.SMALL)
    before = model.loss_
    model.partial_fit(X, Y)
    assert model.loss_ < before


def test_predictions_that_do_not_fit_are_refused(pretend: Pretend):
    model = MLPClassifier((8,), max_iter=1, n_iter_no_change=1)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        model.fit(X, Y)
    many = np.lib.stride_tricks.as_strided(
        X[0], (100_000, 50), (0, 4)
    )  # 20 MB that are 200 bytes, until they are copied
    pretend(15_000_000)
    with pytest.raises(ValueError, match=r"a copy of x as float32 needs 20,000,000 bytes .* fewer rows at a time"):
        model.predict(many)
    whole = np.ascontiguousarray(many)
    pretend(2_000_000)
    with pytest.raises(ValueError, match=r"predicting 100,000 rows with .* needs 2,400,000 bytes"):
        model.predict(whole)
    pretend(2_400_000)
    assert len(model.predict(whole)) == 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_net_is_counted_as_torch_makes_it(dtype: torch.dtype, pretend: Pretend):
    for norm in ("batch", "layer", "rms", "none"):
        for position in ("before", "after"):
            architecture = Architecture(300, (500, 200), 30, norm=norm, norm_position=position)  # type: ignore[arg-type]
            pretend(None)
            net = FeedForward.of(architecture, dtype=dtype)
            taken = sum(t.numel() * t.element_size() for t in net.state_dict().values() if t.ndim)
            learned = sum(p.numel() * p.element_size() for p in net.parameters())
            assert net_bytes(architecture, dtype) == taken
            assert net_bytes(architecture, dtype, buffers=False) == learned
            pretend(taken - 1)
            if taken >= memory.SMALL:
                with pytest.raises(ValueError, match=f"{taken:,} bytes"):
                    FeedForward.of(architecture, dtype=dtype)
            FeedForward.of(architecture, dtype=dtype, device="meta")  # takes nothing


def test_copies_of_the_table_are_asked_for(pretend: Pretend):
    pretend(0)
    tall = np.zeros((10_000, 40), np.float32)
    sparse = scipy.sparse.random(10_000, 400, 0.1, format="csr", dtype=np.float32, random_state=0)
    for fits in (tall, torch.from_numpy(tall), sparse):
        assert prepare_inputs(fits, fits.shape[1], torch.float32).shape == fits.shape
    for copied in (tall.astype(np.float64), np.asfortranarray(tall), tall[:, ::-1], torch.from_numpy(tall).double()):
        with pytest.raises(ValueError, match="a copy of x as float32 needs 1,600,000 bytes"):
            prepare_inputs(copied, 40, torch.float32)
    with pytest.raises(ValueError, match="a copy of x as float64"):
        prepare_inputs(sparse, 400, torch.float64)


# In a process of its own: what is measured is how far it grows.
MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.data import batch_offsets, prepare
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Loss, Optimizer

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

order = json.loads(sys.argv[1])
def train(sizes, rows):
    net = FeedForward(sizes[0], tuple(sizes[1:-1]), sizes[-1], norm=order["norm"], dtype=getattr(torch, order["dtype"]))
    x = np.random.default_rng(0).standard_normal((rows, sizes[0])).astype(order["dtype"])
    loss = Loss("cross_entropy")
    data = prepare(x, np.arange(rows) % sizes[-1], None, net.architecture, loss, getattr(torch, order["dtype"]))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    engine = make_engine(net, loss, Optimizer(), n_threads=2, engine=order["engine"])
    offsets = batch_offsets(rows, rows, net.architecture)
    for _ in range(2):
        engine.train_epoch(data, np.arange(rows), offsets, np.full(1, 1e-3))
    return status("VmHWM") - before
train([3, 4, 2], 64)
print(train(order["sizes"], order["rows"]))
"""
can_measure = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system does not tell")
# Beside what is counted: each of about ten large buffers is rounded up to whole huge pages of 2 MiB, half of one on
# average; threads have stacks.
BESIDE = 16 << 20


def grown(engine: str, sizes: list[int], rows: int, norm: str, dtype: str) -> int:
    order = {"engine": engine, "sizes": sizes, "rows": rows, "norm": norm, "dtype": dtype}
    command = [sys.executable, "-c", MEASURE, json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@needs_native
@can_measure
@pytest.mark.parametrize(
    ("sizes", "rows", "norm", "dtype"),
    [([64, 2000, 2000, 10], 256, "batch", "float32"), ([16, 100, 100, 5], 60_000, "layer", "float64")],
)
def test_the_native_engine_takes_what_is_counted(sizes: list[int], rows: int, norm: str, dtype: str):
    """One shape in which the net is large, one in which the mini-batch is; to 10 % and what is not counted."""
    architecture = Architecture(sizes[0], tuple(sizes[1:-1]), sizes[-1], norm=norm)  # type: ignore[arg-type]
    counted = native_need(architecture, Optimizer(), rows, getattr(torch, dtype), 2).total
    assert counted > 7 * BESIDE
    assert abs(grown("native", sizes, rows, norm, dtype) - counted) < 0.1 * counted + BESIDE


@can_measure
def test_the_reference_engine_takes_no_less_than_is_counted():
    """What would fit must not be refused."""
    sizes, rows = [16, 100, 100, 5], 20_000
    counted = reference_need(Architecture(16, (100, 100), 5), Optimizer(), rows, torch.float32).total
    assert counted > 30e6
    assert grown("reference", sizes, rows, "batch", "float32") > counted


WHOLE_FITS = """
import sys, warnings
from pathlib import Path
import numpy as np
import torch
from wholebatch import FeedForward, Training
from wholebatch.sklearn import MLPClassifier, MLPRegressor
warnings.simplefilter("ignore")

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def fit(kind, rows):
    x = np.random.default_rng(0).standard_normal((rows, 54)).astype(np.float32)
    y = np.arange(rows) % 7
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if kind == "net":
        held = x[: rows // 10], y[: rows // 10]
        net = FeedForward(54, (8,), 7)
        net.fit(torch.from_numpy(x), y, validation=held, training=Training(epochs=1, batch_size=512, patience=1))
    elif kind == "classifier":
        MLPClassifier((8,), batch_size=512, max_iter=1, early_stopping=True).fit(x, y)
    else:
        MLPRegressor(hidden_layer_sizes=(8,), batch_size=512, max_iter=1, early_stopping=True).fit(x, y / 7)
    return (status("VmHWM") - before) / x.nbytes

fit(sys.argv[1], 2000)
print(fit(sys.argv[1], 200_000))
"""


@can_measure
@pytest.mark.parametrize(("kind", "most"), [("net", 0.15), ("classifier", 0.7), ("regressor", 0.4)])
def test_a_fit_takes_less_than_the_table_once_more(kind: str, most: float):
    """In tables of 43 MB: the net's own fit copies none of it.

    Both estimators copy the tenth that they validate on, and scikit-learn turns seven classes into 56 bytes a row (a
    quarter of the table) and, for a moment, into a sparse matrix.
    """
    done = subprocess.run([sys.executable, "-c", WHOLE_FITS, kind], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most


ABSURD = """
import resource, sys
import numpy as np
import torch, wholebatch, wholebatch.sklearn
from wholebatch.sklearn import MLPClassifier, MLPRegressor
x, y = np.zeros((40, 4)), np.arange(40) % 2
wide = (10**7, 10**7)
MLPClassifier((4,), max_iter=2).fit(x, y)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for make in (
    lambda: wholebatch.FeedForward(4, wide, 2),
    lambda: wholebatch.FeedForward(4, wide, 2, dtype=torch.float64),
    lambda: MLPClassifier(wide).fit(x, y),
    lambda: MLPClassifier(wide, engine="reference").fit(x, y),
    lambda: MLPRegressor(hidden_layer_sizes=wide, solver="lbfgs").fit(x, y),
):
    try:
        make()
    except ValueError as error:
        print("REFUSED", error)
print("GREW", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_absurd_shape_takes_nothing():
    command = [sys.executable, "-W", "ignore", "-c", ABSURD]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert len(refused) == 5, done.stdout
    for line, least in zip(refused, (4e14, 8e14, 16e14, 16e14, 16e14), strict=True):  # 1e14 weights, 4 or 8 bytes each
        assert line.startswith("REFUSED")
        words = line.split("needs ")[1].split(" bytes")[0]
        assert int(words.replace(",", "")) > least
        assert "fewer or narrower hidden layers" in line
    kibibytes = int(last.split()[1])
    assert kibibytes < 20 * 1024


def test_the_command_line_refuses_in_one_sentence(tmp_path: Path):
    line = ["train", "iris", "--target", "species", "--hidden", "10000000,10000000", "--out", str(tmp_path / "run")]
    code, out, err = start(tmp_path, *line).wait()
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("wholebatch: training a net of sizes ")
    assert "-10000000-10000000-3 by mini-batches of 32 needs" in err
    assert " are free; choose fewer or narrower hidden layers" in err
    assert not (tmp_path / "run").exists()


@needs_native
def test_an_unknown_instruction_set_is_told_in_one_sentence(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "wholebatch", "train", "iris", "--target", "species", "--out", str(tmp_path / "run")],
        env=os.environ | {"WHOLEBATCH_INSTRUCTION_SET": "avx99"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "WHOLEBATCH_INSTRUCTION_SET is 'avx99'; known are avx512, avx2 and portable" in done.stderr
    assert not (tmp_path / "run").exists()


def test_free_bytes_are_those_of_the_machine_and_of_the_limits(monkeypatch: pytest.MonkeyPatch):
    free = free_bytes()
    assert free is not None
    assert 0 < free <= 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(memory, "_meminfo", lambda: {"MemAvailable": 5000, "SwapFree": 300})
    monkeypatch.setattr(memory, "_own_room", lambda: None)
    for groups, expected in (([], 5300), ([7000], 5300), ([7000, 900], 1200)):
        monkeypatch.setattr(memory, "_group_rooms", lambda groups=groups: iter(groups))
        assert free_bytes() == expected
    monkeypatch.setattr(memory, "_own_room", lambda: 70)
    assert free_bytes() == 70
    monkeypatch.setattr(memory, "_machine_room", lambda: None)
    monkeypatch.setattr(memory, "_group_rooms", lambda: iter(()))
    assert free_bytes() == 70
    monkeypatch.setattr(memory, "_own_room", lambda: None)
    assert free_bytes() is None
    Need(net=10**18).check("a net of any size")  # nobody knows, so nobody refuses


def test_the_limit_on_the_address_space_is_free_memory_too():
    before = resource.getrlimit(resource.RLIMIT_AS)
    if before[0] != resource.RLIM_INFINITY:
        pytest.skip("this process has such a limit already")
    assert memory._own_room() is None
    limit = 1 << 45
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        room = memory._own_room()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert room is not None
    assert 0 < room < limit - (1 << 20)


def write_group(folder: Path, version: int, limit: int | str, used: int, cache: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon {used}\n{prefix}inactive_file {cache}\n{prefix}active_file 1\n")


@pytest.mark.parametrize("version", [1, 2])
def test_control_groups(tmp_path: Path, version: int):
    top = tmp_path / "memory" if version == 1 else tmp_path
    listed = tmp_path / "self"
    listed.write_text("5:cpu,cpuacct:/else\n" + ("4:hugetlb,memory:/a/b\n" if version == 1 else "0::/a/b\n"))

    def rooms() -> list[int]:
        return list(memory._group_rooms(tmp_path, listed))

    assert rooms() == []
    write_group(top, version, 5000, 1000, 49)  # all that a container sees of its group: a root that is its own
    assert rooms() == [4050]
    write_group(top / "a" / "b", version, "max" if version == 2 else 1 << 62, 10, 0)
    write_group(top / "a", version, 800, 900, 9)
    found = rooms()
    assert sorted(found)[:2] == [0, 4050]
    assert len(found) == (2 if version == 2 else 3)  # no limit: "max", or a number beyond all memory
    assert list(memory._group_rooms(tmp_path, tmp_path / "missing")) == []


def test_numbers_are_told_exactly_and_in_units():
    assert human(1023) == "1,023 bytes"
    assert human(1536) == "1,536 bytes (1.5 KiB)"
    assert human(4 * 10**14) == "400,000,000,000,000 bytes (363.8 TiB)"


@needs_native
def test_a_prediction_in_another_team_counts_its_own_parameters(pretend: Pretend):
    architecture = Architecture(10, (700, 700), 5, norm="none")
    pretend(None)
    for held, more in ((0, 0), (200, 0), (100_000, 1)):
        need = native_need(architecture, Optimizer("sgd"), 200, torch.float32, 2)
        total = need.total + more * native_need(architecture, Optimizer("sgd"), 0, torch.float32, 2).net
        pretend(total)
        check_fit(architecture, Optimizer("sgd"), 200, torch.float32, n_threads=2, engine="native", held=held)
        pretend(total - 1)
        with pytest.raises(ValueError, match=f"needs {total:,} bytes"):
            check_fit(architecture, Optimizer("sgd"), 200, torch.float32, n_threads=2, engine="native", held=held)
    pretend(0)
    check_predict(architecture, 100, torch.float32, made=True)
    with pytest.raises(ValueError, match="predicting 100 rows"):
        check_predict(architecture, 100, torch.float32)
