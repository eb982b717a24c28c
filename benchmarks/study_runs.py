"""Runs of the study: trained in a new order for each seed, kept one by one, so that a study that stopped goes on."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.study_cases import WAYS, Net, Split, load_data, make_net, order_of, step_of
from wholebatch import files
from wholebatch.microbatches.offload import Offload

MOMENTUM = 0.9
Run = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is trained: each net, by each way, with each learning rate and seed.

    Attributes:
        epochs: of every run; an evaluation follows each.
        offload: of lockstep.
        threads: of torch.
    """

    nets: tuple[Net, ...]
    ways: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: int
    epochs: int
    offload: Offload
    threads: int

    def keys(self) -> Iterator[Run]:
        """What tells one run from all others, seed by seed in a new order, so that a noisy minute hits every way."""
        shuffle = random.Random(0).shuffle
        for seed in range(self.seeds):
            found = [
                {"net": net, "way": way, "rate": rate, "seed": seed}
                | {"epochs": self.epochs, "offload": self.offload if WAYS[way].exact else None, "threads": self.threads}
                for net, way, rate in product(self.nets, self.ways, self.rates)
            ]
            shuffle(found)
            yield from found


def load(path: Path) -> list[Run]:
    """The runs that are there.

    Raises:
        ValueError: the file is not the study's.
    """
    if not path.exists():
        return []
    try:
        runs = json.loads(path.read_text())
        if not all(isinstance(run["steps"], list) for run in runs):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a list of the study's runs; name another folder, or delete it") from error
    return list(runs)


def complete(plan: Plan, path: Path, say: Callable[[str], None]) -> list[Run]:
    """The runs of the plan: those that the file has, and the others, each added to it as soon as it is trained."""
    kept = load(path)
    keys = list(plan.keys())
    torch.set_num_threads(plan.threads)
    for number, key in enumerate(keys):
        if not any(_is(run, key) for run in kept):
            say(f"run {number + 1} of {len(keys)}: {key['net']}, {key['way']}, rate {key['rate']}, seed {key['seed']}")
            kept.append(key | train(key))
            files.write_json(path, kept)
    return [run for run in kept if any(_is(run, key) for key in keys)]


def _is(run: Run, key: Run) -> bool:
    return all(run[name] == value for name, value in key.items())


def train(key: Run) -> Run:
    """One run: SGD with momentum and the rate falling to zero along a half cosine.

    Returns:
        For the beginning and after each epoch: ``steps``; ``seconds`` of training (the evaluations left out); losses
        and accuracies on validation and test rows in evaluation mode; and ``loss``, the mean over the epoch's steps as
        they were trained on (null at the beginning). A loss that is not finite is null.
    """
    way, data = WAYS[key["way"]], load_data()
    net: Net = key["net"]
    model = make_net(net, way.norm, key["seed"])
    optimizer = torch.optim.SGD(model.parameters(), lr=key["rate"], momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(key["seed"])
    step = step_of(way, model, key["offload"] or "none")
    x, y = data["train"].x, data["train"].y
    total = key["epochs"] * len(order_of(way, len(x), y, torch.Generator()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    rows = [{"steps": 0, "seconds": 0.0, "loss": None, **evaluate(model, data)}]
    seconds, steps = 0.0, 0
    for _ in range(key["epochs"]):
        batches, losses = order_of(way, len(x), y, generator), list[torch.Tensor]()
        model.train()
        start = time.perf_counter()
        for batch in batches:
            optimizer.zero_grad()
            losses.append(step(x[batch], y[batch]))
            optimizer.step()
            schedule.step()
        seconds += time.perf_counter() - start
        steps += len(batches)
        loss = _finite(torch.stack(losses).mean())
        rows.append({"steps": steps, "seconds": seconds, "loss": loss, **evaluate(model, data)})
    return {name: [row[name] for row in rows] for name in rows[0]}


def evaluate(model: nn.Module, data: dict[str, Split]) -> dict[str, float | None]:
    """Loss and accuracy on validation and test rows, with the running statistics."""
    model.eval()
    found: dict[str, float | None] = {}
    with torch.no_grad():
        for name in ("validation", "test"):
            outputs = model(data[name].x)
            found[f"{name}_loss"] = _finite(F.cross_entropy(outputs, data[name].y))
            found[f"{name}_accuracy"] = float((outputs.argmax(1) == data[name].y).double().mean())
    return found


def _finite(value: torch.Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None


def chosen_rate(runs: Sequence[Run]) -> float:
    """Of one net and way: the learning rate with the best mean validation accuracy at the end; of equals, the lower."""
    rates: list[float] = sorted({run["rate"] for run in runs})

    def score(rate: float) -> float:
        return statistics.fmean(run["validation_accuracy"][-1] for run in runs if run["rate"] == rate)

    return max(rates, key=score)  # the first of equals


def chosen_runs(runs: Sequence[Run], net: str, way: str) -> list[Run]:
    """The runs of this net and way at their own best rate, by seed."""
    mine = [run for run in runs if (run["net"], run["way"]) == (net, way)]
    if not mine:
        return []
    rate = chosen_rate(mine)
    return sorted((run for run in mine if run["rate"] == rate), key=lambda run: int(run["seed"]))
