"""How each system fits a table: one function each, with the same settings, Adam and scikit-learn's first weights.

Every fit tells after each epoch, through ``after_epoch``, what it takes to predict with the net as it then is. A
system imports what it needs itself, in a process of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.fit_tables import FitTable, Recipe

if TYPE_CHECKING:
    import torch

Predict = Callable[[np.ndarray], np.ndarray]
# Is given a function that, when the fit is over, predicts as the net would have at this moment.
AfterEpoch = Callable[[Predict], None] | None
Fit = Callable[[FitTable, Recipe, str, int, int, AfterEpoch], None]

FITTED = ("coefs_", "intercepts_", "norm_weights_", "norm_biases_", "running_means_", "running_vars_")


def _listening(kind: type, after_epoch: AfterEpoch) -> type:
    """The estimator, telling after each epoch; scikit-learn's and ours both end it with this method."""

    class Listening(kind):  # type: ignore[misc]
        def _update_no_improvement_count(self, *values: Any) -> None:
            super()._update_no_improvement_count(*values)
            if after_epoch is None:
                return
            kept = {name: [a.copy() for a in getattr(self, name)] for name in FITTED if hasattr(self, name)}

            def predict(x: np.ndarray) -> np.ndarray:
                self.__dict__.update(kept)
                classes: np.ndarray = self.predict(x)
                return classes

            after_epoch(predict)

    # scikit-learn looks at the signature for the names of the parameters
    Listening.__init__ = kind.__init__  # type: ignore[method-assign,misc]
    return Listening


def _settings(recipe: Recipe, seed: int) -> dict[str, Any]:
    """Adam without a penalty for exactly so many epochs."""
    return {
        "hidden_layer_sizes": recipe.hidden,
        "batch_size": recipe.batch,
        "learning_rate_init": recipe.learning_rate,
        "max_iter": recipe.epochs,
        "alpha": 0.0,
        "tol": 0.0,
        "n_iter_no_change": recipe.epochs,
        "random_state": seed,
    }


def fit_sklearn(table: FitTable, recipe: Recipe, norm: str, seed: int, threads: int, after_epoch: AfterEpoch) -> None:
    """``sklearn.neural_network.MLPClassifier``; its threads are NumPy's, told by the environment."""
    from sklearn.neural_network import MLPClassifier

    assert norm == "none", norm
    _fit_quietly(_listening(MLPClassifier, after_epoch)(**_settings(recipe, seed)), table)


def fit_wholebatch(
    table: FitTable, recipe: Recipe, norm: str, seed: int, threads: int, after_epoch: AfterEpoch
) -> None:
    """``wholebatch.sklearn.MLPClassifier``, which chooses its threads itself, up to the cores that it may use."""
    from wholebatch.sklearn import MLPClassifier

    kind = _listening(MLPClassifier, after_epoch)
    _fit_quietly(kind(**_settings(recipe, seed), norm=None if norm == "none" else norm), table)


def _fit_quietly(estimator: Any, table: FitTable) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is what was asked for
        estimator.fit(table.x, table.y)


def fit_torch(table: FitTable, recipe: Recipe, norm: str, seed: int, threads: int, after_epoch: AfterEpoch) -> None:
    """An eager loop: tensors on the CPU, mini-batches by ``index_select`` from a permutation, the fused Adam."""
    _train(_make_net(table, recipe, norm, seed, threads), table, recipe, after_epoch)


def fit_compile(table: FitTable, recipe: Recipe, norm: str, seed: int, threads: int, after_epoch: AfterEpoch) -> None:
    """The same loop around ``torch.compile`` of the net, which the fits before the timed one have had compiled."""
    import torch

    net = _make_net(table, recipe, norm, seed, threads)
    _train(torch.compile(net), table, recipe, after_epoch)  # type: ignore[arg-type]


def _make_net(table: FitTable, recipe: Recipe, norm: str, seed: int, threads: int) -> torch.nn.Sequential:
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    dtype = torch.from_numpy(table.x[:0]).dtype
    norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
    layers: list[nn.Module] = []
    width = table.x.shape[1]
    for size in recipe.hidden:
        layers.append(nn.Linear(width, size, bias=norm != "batch", dtype=dtype))
        layers += [norms[norm](size, dtype=dtype)] if norm != "none" else []
        layers.append(nn.ReLU())
        width = size
    layers.append(nn.Linear(width, int(table.y.max()) + 1, dtype=dtype))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
            for tensor in layer.parameters():
                nn.init.uniform_(tensor, -bound, bound)
    return nn.Sequential(*layers)


def _train(net: torch.nn.Module, table: FitTable, recipe: Recipe, after_epoch: AfterEpoch) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    x, y = torch.from_numpy(table.x), torch.from_numpy(table.y)
    adam = torch.optim.Adam(net.parameters(), recipe.learning_rate, fused=True)
    for _ in range(recipe.epochs):
        net.train()
        for rows in torch.split(torch.randperm(len(y)), recipe.batch):
            if len(rows) < 2:  # batch norm refuses a single row
                continue
            loss = cross_entropy(net(x.index_select(0, rows)), y.index_select(0, rows))
            adam.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            adam.step()
        if after_epoch is None:
            continue
        kept = {name: value.clone() for name, value in net.state_dict().items()}
        after_epoch(lambda rows, kept=kept: _predict(net, kept, rows))  # type: ignore[misc]


def _predict(net: Any, kept: dict[str, torch.Tensor], x: np.ndarray) -> np.ndarray:
    import torch

    net.load_state_dict(kept)
    net.eval()
    with torch.no_grad():
        classes: np.ndarray = getattr(net, "_orig_mod", net)(torch.from_numpy(x)).argmax(1).numpy()
    return classes


FITS: dict[str, Fit] = {
    "wholebatch": fit_wholebatch,
    "sklearn": fit_sklearn,
    "torch": fit_torch,
    "compile": fit_compile,
}
PEERS = tuple(name for name in FITS if name != "wholebatch")
NORMS = ("none", "batch", "layer")


def norms_of(system: str, norms: tuple[str, ...]) -> tuple[str, ...]:
    """Those that the system has: scikit-learn's net has no norm."""
    return tuple(norm for norm in norms if system != "sklearn" or norm == "none")
