"""The update on a device: torch's own optimizers over one tensor of all parameters, with no number read by the host.

The learning rate is a tensor, so a schedule changes nothing in a captured step. Two rules torch has no capturable form
of are written out: epsilon-hat, whose epsilon torch takes as a number of the host, and SGD in float64, whose fused form
reads a float32 rate.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wholebatch.feedforward.settings import Optimizer


class Rule(Protocol):
    """Moves the parameters by their gradient."""

    rate: Tensor

    def update(self) -> None:
        """One step."""

    def restart(self, step: int) -> None:
        """So many steps were done."""


class Update:
    """One optimizer over ``flat``.

    Args:
        flat: ``(n,)`` parameters.
        gradient: ``(n,)``.

    Attributes:
        states: by the optimizer's names, ``(n,)``: what it keeps.
        rate: of no dimension: the learning rate of the next step.
    """

    def __init__(self, optimizer: Optimizer, flat: Tensor, gradient: Tensor) -> None:
        self._clip = optimizer.max_grad_norm
        self._parameter = nn.Parameter(flat)
        self._parameter.grad = gradient
        self.states = {name: torch.zeros_like(flat) for name in optimizer.state_names}
        by_hand = optimizer.eps_hat if optimizer.kind != "sgd" else flat.dtype == torch.float64
        rule = _EpsHat if optimizer.eps_hat else _Sgd
        self._rule: Rule = (rule if by_hand else _OfTorch)(optimizer, self._parameter, self.states)
        self.rate = self._rule.rate

    def restart(self, step: int) -> None:
        """So many steps were done; the states are set by the caller."""
        self._rule.restart(step)

    @torch.no_grad()
    def step(self) -> None:
        """Clip the gradient, where that was asked for, and move the parameters."""
        if self._clip is not None:
            nn.utils.clip_grad_norm_([self._parameter], self._clip)
        self._rule.update()


class _OfTorch:
    """torch.optim's: fused in float32; in float64 (whose fused form reads a float32 rate on a GPU) by foreach."""

    def __init__(self, o: Optimizer, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        fused, on_gpu = parameter.dtype == torch.float32, parameter.is_cuda
        self.rate = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        how: dict[str, Any] = {"fused": True} if fused else {"foreach": on_gpu}
        state: dict[str, Tensor] = dict(states)
        self._stepper: torch.optim.Optimizer
        self._done = torch.zeros((), dtype=torch.float32, device=parameter.device)
        if o.kind == "sgd":
            self._stepper = torch.optim.SGD(
                [parameter], self.rate, o.momentum, weight_decay=o.weight_decay, nesterov=o.nesterov, **how
            )
        else:
            kind = torch.optim.Adam if o.kind == "adam" else torch.optim.AdamW
            self._stepper = kind([parameter], self.rate, o.betas, o.eps, o.weight_decay, capturable=on_gpu, **how)
            # Steps before a capture run as they are, which is meant.
            self._stepper._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]
            state["step"] = self._done
        self._stepper.state[parameter] = state

    def update(self) -> None:
        self._stepper.step()

    def restart(self, step: int) -> None:
        self._done.fill_(step)


class _Sgd:
    """``b = mu b + g``, ``w -= rate * b`` (Nesterov: ``g + mu b``)."""

    def __init__(self, o: Optimizer, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        self._o, self._parameter, self._buffer = o, parameter, states.get("momentum_buffer")
        self.rate = torch.zeros((), dtype=parameter.dtype, device=parameter.device)

    def update(self) -> None:
        parameter, gradient = self._parameter, self._parameter.grad
        assert gradient is not None
        direction = gradient.add(parameter, alpha=self._o.weight_decay) if self._o.weight_decay else gradient
        if self._buffer is not None:
            self._buffer.mul_(self._o.momentum).add_(direction)
            nesterov = self._o.nesterov
            direction = direction.add(self._buffer, alpha=self._o.momentum) if nesterov else self._buffer
        parameter.addcmul_(direction, self.rate, value=-1.0)

    def restart(self, step: int) -> None:
        pass


class _EpsHat:
    """Adam with epsilon before the bias correction: ``w -= rate sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``.

    Source: Kingma and Ba, "Adam", 2015, end of section 2.
    """

    def __init__(self, o: Optimizer, parameter: nn.Parameter, states: dict[str, Tensor]) -> None:
        self._o, self._parameter = o, parameter
        self._mean, self._square = states["exp_avg"], states["exp_avg_sq"]
        self.rate = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        self._done = torch.zeros((), dtype=torch.float64, device=parameter.device)

    def update(self) -> None:
        o, parameter, gradient = self._o, self._parameter, self._parameter.grad
        assert gradient is not None
        if o.weight_decay and o.kind == "adam":
            gradient = gradient.add(parameter, alpha=o.weight_decay)
        elif o.weight_decay:
            parameter.mul_(1 - self.rate * o.weight_decay)
        self._done.add_(1)
        self._mean.lerp_(gradient, 1 - o.betas[0])
        self._square.mul_(o.betas[1]).addcmul_(gradient, gradient, value=1 - o.betas[1])
        correction = (1 - o.betas[1] ** self._done).sqrt() / (1 - o.betas[0] ** self._done)
        scale = (self.rate * correction).to(parameter.dtype)
        parameter.addcmul_(self._mean / (self._square.sqrt() + o.eps), scale, value=-1.0)

    def restart(self, step: int) -> None:
        self._done.fill_(step)
