"""The oracle of the engines: plain float64 torch, written from torch's documentation and not from any engine.

It builds the net anew out of torch's modules, states each loss by its formula, steps with ``torch.optim``, and takes
dropout's masks from :func:`wholebatch.feedforward.dropout.dropout_mask`, which ``test_dropout`` holds against the
published Philox vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wholebatch import Architecture, FeedForward, Loss, Optimizer
from wholebatch.feedforward.data import Data, prepare
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.engine import Engine
from wholebatch.feedforward.engines import make_engine

Gradients = dict[str, Tensor]
PLACES = [
    ("batch", "before"),
    ("batch", "after"),
    ("layer", "before"),
    ("layer", "after"),
    ("rms", "before"),
    ("rms", "after"),
    ("none", "before"),
]
SMOOTH = ("elu", "gelu", "silu", "tanh", "sigmoid", "identity")  # continuous derivatives: no sign that rounding flips
ACTIVATIONS = ("relu", "leaky_relu", *SMOOTH)
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # half a unit in the last place: one rounding


class Masked(nn.Module):
    """Dropout with a mask that is given."""

    mask: Tensor
    p: float

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask / (1 - self.p) if self.training else x


class Oracle:
    """A float64 twin of ``model``, and its training."""

    def __init__(self, model: FeedForward, loss: Loss, optimizer: Optimizer | None = None, seed: int = 0) -> None:
        self.architecture, self.loss, self.seed, self.step = model.architecture, loss, seed, 0
        self.net = build(model.architecture)
        self.net.load_state_dict({n.removeprefix("layers."): t.double() for n, t in model.state_dict().items()})
        self.optimizer = optimizer or Optimizer("sgd")
        self.stepper = stepper_of(self.optimizer, self.net.parameters())

    def gradients(self, data: Data) -> tuple[float, Gradients]:
        """Loss and gradients by the model's names; running statistics move as in one training step."""
        self.net.zero_grad()
        loss = self.forward(data)
        loss.backward()
        return loss.item(), {f"layers.{n}": p.grad for n, p in self.net.named_parameters() if p.grad is not None}

    def forward(self, data: Data) -> Tensor:
        self.net.train()
        masked = [module for module in self.net if isinstance(module, Masked)]
        for layer, (module, size) in enumerate(zip(masked, self.architecture.hidden_layer_sizes, strict=False)):
            module.p = self.architecture.dropout
            module.mask = torch.from_numpy(
                dropout_mask(len(data), size, layer, self.step, self.seed, module.p)
            ).double()
        weight = None if data.sample_weight is None else torch.from_numpy(data.sample_weight).double()
        assert data.y is not None
        y = torch.from_numpy(data.y)
        loss = loss_of(self.loss, self.net(inputs_of(data)), y if self.loss.takes_classes else y.double(), weight)
        squares = sum((m.weight.square().sum() for m in self.net if isinstance(m, nn.Linear)), torch.zeros(()))
        counted = len(data) if weight is None else weight.sum()
        return loss + self.loss.alpha / 2 * squares / counted

    def nearest_kink(self, data: Data) -> float:
        """How near to 0 an input of relu or leaky_relu comes: a float32 engine may round it to the other side."""
        nearest = [float("inf")]
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs: nearest.append(float(inputs[0].detach().abs().min())))
            for module in self.net
            if isinstance(module, (nn.ReLU, nn.LeakyReLU))
        ]
        before = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.forward(data)
        self.net.load_state_dict(before)
        for hook in hooks:
            hook.remove()
        return min(nearest)

    def train(self, data: Data, order: np.ndarray, offsets: Sequence[int], rates: Sequence[float]) -> float:
        """One epoch; returns the mean over its examples of their mini-batch's loss."""
        total = 0.0
        for (begin, end), rate in zip(pairwise(offsets), rates, strict=True):
            batch = data.take(np.asarray(order[begin:end]))
            for group in self.stepper.param_groups:
                group["lr"] = rate
            loss, _ = self.gradients(batch)
            if self.optimizer.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), self.optimizer.max_grad_norm)
            self.stepper.step()
            self.step += 1
            total += loss * (end - begin)
        return total / (offsets[-1] - offsets[0])

    def state(self) -> dict[str, Tensor]:
        """Parameters and running statistics by the model's names."""
        return {f"layers.{n}": t for n, t in self.net.state_dict().items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """By the engine's names."""
        return {
            f"{kind}.layers.{name}": value
            for name, parameter in self.net.named_parameters()
            for kind, value in self.stepper.state[parameter].items()
            if kind != "step" and value is not None
        }

    @torch.no_grad()
    def predict(self, data: Data) -> Tensor:
        out: Tensor = self.net.eval()(inputs_of(data))
        return out


def build(a: Architecture) -> nn.Sequential:
    """The architecture in torch's own modules."""
    activations: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU,
        "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "identity": nn.Identity,
    }  # fmt: skip
    modules: list[nn.Module] = []
    width = a.in_features
    for size in a.hidden_layer_sizes:
        modules.append(nn.Linear(width, size, bias=(a.norm, a.norm_position) != ("batch", "before")))
        here: list[nn.Module] = [activations[a.activation]()]
        norm: nn.Module | None = None
        if a.norm == "batch":
            norm = nn.BatchNorm1d(size, a.eps, a.momentum)
        elif a.norm == "layer":
            norm = nn.LayerNorm(size, a.eps)
        elif a.norm == "rms":
            norm = nn.RMSNorm(size, a.eps)
        if norm is not None:
            here.insert(0 if a.norm_position == "before" else 1, norm)
        modules += here
        if a.dropout:
            modules.append(Masked())
        width = size
    return nn.Sequential(*modules, nn.Linear(width, a.out_features)).double()


def loss_of(loss: Loss, out: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Each loss by its formula, weighted; ``test_oracle_losses`` holds the unweighted ones against torch's modules."""
    s = loss.label_smoothing
    w = torch.ones(len(out), dtype=out.dtype) if weight is None else weight
    classes = torch.ones(out.shape[1], dtype=out.dtype)
    if loss.class_weights is not None:
        classes = torch.tensor(loss.class_weights, dtype=out.dtype)
    if loss.kind == "cross_entropy":
        targets = nn.functional.one_hot(y, out.shape[1]).to(out) * (1 - s) + s / out.shape[1]
        each = -(targets * classes * (out - out.logsumexp(1, keepdim=True))).sum(1)
        return loss.scale * (w * each).sum() / (w * classes[y]).sum()
    if loss.kind == "mse":
        elements = (out - y) ** 2
    elif loss.kind == "huber":
        e = (out - y).abs()
        elements = torch.where(e <= loss.delta, e**2 / 2, loss.delta * (e - loss.delta / 2))
    else:
        targets = y * (1 - s) + s / 2
        elements = -classes * (targets * nn.functional.logsigmoid(out) + (1 - targets) * nn.functional.logsigmoid(-out))
    return loss.scale * (w * elements.mean(1)).sum() / w.sum()


def stepper_of(o: Optimizer, parameters: Any) -> torch.optim.Optimizer:
    if o.kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=o.learning_rate, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[o.kind]
    return kind(parameters, lr=o.learning_rate, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay)


def inputs_of(data: Data) -> Tensor:
    x = data.x if isinstance(data.x, np.ndarray) else data.x.toarray()
    return torch.from_numpy(np.asarray(x)).double()


def make_model(
    sizes: Sequence[int], norm: str, position: str, activation: str, *, dtype: torch.dtype, seed: int = 0, **more: Any
) -> FeedForward:
    """A net whose every parameter and statistic has a value that no initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    model = FeedForward(
        sizes[0], tuple(sizes[1:-1]), sizes[-1],
        norm=norm, norm_position=position, activation=activation, dtype=dtype, **more,
    )  # fmt: skip

    def fill(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator, dtype=torch.float64))

    with torch.no_grad():
        for part in model.parts():
            spread = (3 / part.linear.in_features) ** 0.5  # sums of unit variance for inputs of unit variance
            fill(part.linear.weight, -spread, spread)
            if part.linear.bias is not None:
                fill(part.linear.bias, -0.5, 0.5)
            for name, tensor in part.norm.state_dict().items() if part.norm is not None else ():
                if tensor.is_floating_point():
                    fill(tensor, *((-0.5, 0.5) if name in ("bias", "running_mean") else (0.5, 1.5)))
    return model


def make_data(
    model: FeedForward, loss: Loss, rows: int, *, seed: int = 0, weighted: bool = False, **inputs: Any
) -> Data:
    """Rows in the model's dtype; ``mean`` (0) and ``constant`` (a column of one value) shape the inputs."""
    rng = np.random.default_rng([seed, rows])
    a = model.architecture
    x = rng.standard_normal((rows, a.in_features)) + inputs.get("mean", 0.0)
    if inputs.get("constant"):
        x[:, 0] = 3.0
    if loss.takes_classes:
        y = rng.integers(0, a.out_features, rows)
    elif loss.kind == "bce":
        y = rng.integers(0, 2, (rows, a.out_features)).astype(float)
    else:
        y = rng.standard_normal((rows, a.out_features)) * 2
    weight = rng.uniform(0.1, 3.0, rows) if weighted else None
    dtype = next(model.parameters()).dtype
    return prepare(x.astype("float32"), y, weight, a, loss, dtype)


def engine_of(name: str, model: FeedForward, loss: Loss, optimizer: Optimizer | None = None, **more: Any) -> Engine:
    """The engine of this name; on two example-threads where it has them."""
    more.setdefault("n_threads", 2 if name == "native" else 1)
    return make_engine(model, loss, optimizer or Optimizer("sgd"), engine=name, **more)


def assert_near(given: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, floor: float = 0.0) -> None:
    """Differences in a tensor of at most ``tolerance`` of its largest value, plus ``floor`` of the largest of all."""
    assert given.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values() if tensor.is_floating_point())
    for name, want in expected.items():
        got = given[name]
        assert got.shape == want.shape, name
        if not want.is_floating_point():
            assert torch.equal(got, want), name
            continue
        allowed = tolerance * float(want.abs().max()) + floor * largest
        off = float((got.double() - want).abs().max())
        assert off <= allowed, f"{name}: off by {off:.3g}, allowed {allowed:.3g}; largest {float(want.abs().max()):.3g}"
