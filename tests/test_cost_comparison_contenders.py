"""That the contenders of a comparison are given the same and take the same steps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from comparisons import make_problem
from wholebatch.cost.comparison import eager
from wholebatch.cost.comparison.norms import NORMS
from wholebatch.cost.comparison.ours import Ours
from wholebatch.cost.comparison.record import NormName
from wholebatch.cost.comparison.trainer import DivergedError
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.settings import Optimizer


@pytest.mark.parametrize("kind", ["cross_entropy", "mse", "bce"])
@pytest.mark.parametrize("norm", NORMS)
def test_torch_and_the_engine_take_the_same_steps(engine: str, norm: NormName, kind: str):
    """Equal nets after two epochs: first weights, mini-batches, losses and updates are all the same."""
    problem = make_problem(kind=kind)
    ours = Ours(problem, norm, 5, 1e-3, 1, "")
    ours.engine = make_engine(ours.engine.model, problem.loss, ours.engine.optimizer, n_threads=1, engine=engine)
    theirs = eager.Eager(problem, norm, 5, 1e-3, 1, "fused")
    first = [p.detach().clone() for p in theirs.net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, ours.engine.model.parameters(), strict=True))
    for epoch in range(2):
        order = problem.order(5, epoch)
        assert ours.train(order, problem.offsets) > 0
        assert theirs.train(order, problem.offsets) > 0
    for a, b, start in zip(ours.engine.model.parameters(), theirs.net.parameters(), first, strict=True):
        assert (a - start).abs().max() > 1e-4
        # 12 steps of at most 1e-3 each. Adam divides by the root of the second moment, so an error of float64's
        # rounding (1e-16 relative) in a gradient g grows by 1e-8 / |g| at most where g is near zero.
        assert torch.allclose(a, b, rtol=0, atol=1e-9)
    x = problem.validation.x
    assert np.allclose(ours.predict(x), theirs.predict(x), rtol=0, atol=1e-8)


def test_the_first_loss_is_that_of_the_first_mini_batch():
    problem = make_problem()
    ours = Ours(problem, "batch", 2, 1e-3, 1, "")
    theirs = eager.Eager(problem, "batch", 2, 1e-3, 1, "foreach")
    rows = problem.order(2, 0)[: problem.offsets[1]]
    expected, _ = ours.engine.gradients(problem.training.take(rows))
    found = theirs.loss(theirs.net(theirs.x[torch.from_numpy(rows)]), theirs.y[torch.from_numpy(rows)])
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)  # sums of 16 in another order: 16 * 2^-53


def test_every_norm_begins_with_the_same_weights_and_every_seed_with_its_own():
    problem = make_problem()
    weights = [[part.linear.weight for part in problem.net(norm, 1).parts()] for norm in NORMS]
    assert all(torch.equal(a, b) for of in weights[1:] for a, b in zip(weights[0], of, strict=True))
    other = [part.linear.weight for part in problem.net("batch", 2).parts()]
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], other, strict=True))
    before = torch.random.get_rng_state()
    problem.net("batch", 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_torchs_optimizers_are_the_variants_they_are_named_after():
    problem = make_problem()
    for kind in ("sgd", "adam", "adamw"):
        of_kind = replace(problem, optimizer=Optimizer(kind, momentum=0.9 if kind == "sgd" else 0.0))  # type: ignore[arg-type]
        for how in eager.VARIANTS:
            made = eager.Eager(of_kind, "none", 0, 0.25, 1, how).optimizer
            assert type(made).__name__.lower() == kind
            assert (made.defaults["fused"], made.defaults["foreach"]) == (
                how == "fused" or None,
                how == "foreach" or None,
            )
            assert made.defaults["lr"] == 0.25


def test_outputs_that_are_not_finite_are_a_divergence():
    problem = make_problem()
    trainer = eager.Eager(problem, "none", 0, 1e-3, 1, "fused")
    with torch.no_grad():
        next(iter(trainer.net.parameters())).fill_(math.nan)
    with pytest.raises(DivergedError):
        trainer.train(problem.order(0, 0), problem.offsets)
