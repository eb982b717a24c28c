"""The bytes that a net and its training take, added up from sizes alone.

Counted are the net's tensors and an engine's own buffers, the large ones exactly; Python and temporary values are small
beside them. The reference engine is counted low, by what autograd has to keep: what would fit is never refused.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from wholebatch import kernels
from wholebatch.feedforward.memory import Need
from wholebatch.feedforward.settings import Architecture, MatmulPrecision, Optimizer
from wholebatch.feedforward.threads import BLOCK_ROWS, choose_split

LINE = 64  # bytes of a cache line
KEPT_BYTES = 1 << 20  # inputs of a layer that are kept and not made again: kept_bytes in native/network.cpp
GROUPED_WEIGHTS = 1 << 17  # of a matrix whose gradient is summed in groups of blocks: summed_in_groups in network.h
TURNED = 1 << 18  # elements of h that are turned at a time, at least: most_turned in native/products.cpp
WANTED_LINES, MOST_ASKED = 8192, 192  # whose addresses a worker holds: Wanted::limit and Ahead::slack in native/ahead.h
NUMBERS = {"highest": 0, "medium": 1, "high": 2}  # of bfloat16 that a number of an operand is rounded to
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "portable": 16}


def net_bytes(architecture: Architecture, dtype: torch.dtype, *, buffers: bool = True) -> int:
    """Bytes of the net's own tensors: weights, biases, norms and, as ``buffers``, running statistics."""
    a = architecture
    count = sum(m * n for m, n in pairwise(a.sizes)) + a.out_features
    vectors = {"batch": 4 if buffers else 2, "layer": 2, "rms": 1, "none": 0}[a.norm] + a.hidden_bias
    return (count + vectors * sum(a.hidden_layer_sizes)) * dtype.itemsize


def check_net(architecture: Architecture, dtype: torch.dtype) -> None:
    """Refuse a net whose parameters alone do not fit.

    Raises:
        ValueError: naming the bytes needed and free.
    """
    Need(net_bytes(architecture, dtype), dtype=dtype).check(describe(architecture))


def native_need(
    architecture: Architecture,
    optimizer: Optimizer,
    rows: int,
    dtype: torch.dtype,
    threads: int,
    matmul_precision: MatmulPrecision = "highest",
) -> Need:
    """The buffers of ``Network`` (native/network.cpp: constructor and ``prepare``), and the optimizer's state.

    Args:
        matmul_precision: that the products have: "highest" where the processor has no unit for others.
    """
    a, size, double = architecture, dtype.itemsize, 8
    width, line = VECTOR_BYTES[kernels.instruction_set()] // size, LINE // size
    forms = 2 + len(optimizer.state_names)  # value, gradient and what the optimizer keeps
    blocks, last = -(-rows // BLOCK_ROWS), len(a.sizes) - 2
    net = batch = widest = h = dz = part = grouped = 0
    copies = (
        threads if choose_split(rows, threads) == "neuron" else 1
    )  # of kept inputs: by neuron each worker has its own
    for layer, (fan_in, fan_out) in enumerate(pairwise(a.sizes)):
        hidden = layer < last
        depth, padded = fan_in + (a.hidden_bias or not hidden), _whole(fan_out, width)
        stride = padded if padded * size % 1024 else padded + line
        widest = max(widest, stride)
        ldh = _odd_lines(max(depth, _whole(fan_in, width)), line)
        h, dz = max(h, ldh), max(dz, _odd_lines(padded, line))
        batch += copies * rows * ldh * size if rows * ldh * size <= KEPT_BYTES else 0
        if depth * fan_out <= GROUPED_WEIGHTS:
            part, grouped = max(part, depth * padded), max(grouped, depth * fan_out)
        net += (forms * depth * padded + padded) * size  # the weights; which columns are real
        if matmul_precision == "highest":
            net += fan_out * _whole(fan_in, width) * size if layer else 0  # their transpose
        net += 2 * -(-padded // (2 * width)) * depth * double  # squares of the weights' rows and of the gradient's
        if not hidden:
            break
        net += threads * padded * (7 * size + 4 * double)  # each worker's merged statistics
        batch += rows * stride * size  # Z
        if a.norm != "none":
            net += 2 * forms * padded * size + 2 * padded * double  # gamma and beta, running mean and variance
            batch += 4 * blocks * padded * double  # moments and sums of each block
        if a.norm in ("layer", "rms"):
            batch += 2 * rows * size
    packed = max(h, dz) + 2 * width  # a block as a left operand, and a panel as a right one
    own = BLOCK_ROWS * (h + dz + packed + 2) + width + _whole(a.sizes[-1], width) * width
    net += threads * own * size  # each worker's blocks
    wanted = min(BLOCK_ROWS * 3 * (max(h, dz) // line + 2), WANTED_LINES) + MOST_ASKED
    net += threads * wanted * double  # and the addresses of what it asks memory for
    batch += min(3, last + 1) * rows * widest * size + blocks * double  # gradients of outputs, losses
    groups = _groups(blocks, grouped)
    batch += min(2, last + 1) * groups * part * size if groups > 1 else 0  # sums of weights' gradients
    need = Need(net + _state_bytes(a, optimizer, dtype), batch, 0, rows, dtype)
    if matmul_precision == "highest":
        return need
    of_net, of_batch = _rounded_bytes(a, blocks, groups, threads, width, NUMBERS[matmul_precision])
    return need.plus(net=of_net, batch=of_batch)


def _rounded_bytes(
    architecture: Architecture, blocks: int, groups: int, threads: int, width: int, numbers: int
) -> tuple[int, int]:
    """Of the net and of the mini-batch, ``Network``'s rounded operands (native/products.cpp: ``prepare_products``).

    Args:
        blocks, groups: of a mini-batch's rows.
        width: numbers of a vector of float32.
        numbers: of bfloat16 for each of float32.
    """
    a, net, batch = architecture, 0, 0
    last, steps = len(a.sizes) - 2, BLOCK_ROWS // 32  # of a block's rows

    def tiles(outer: int, inner_steps: int) -> int:
        return -(-outer // 16) * inner_steps * 512 * 2 * numbers

    left, right = TURNED * 2 * numbers, 0
    gradients, sums = [0, 0], [0, 0]  # of odd and even layers
    for layer, (fan_in, fan_out) in enumerate(pairwise(a.sizes)):
        has_bias, padded = a.hidden_bias or layer == last, _whole(fan_out, width)
        net += tiles(padded, -(-fan_in // 32)) + (tiles(fan_in, -(-fan_out // 32)) if layer else 0)
        in_groups = (fan_in + has_bias) * fan_out <= GROUPED_WEIGHTS
        kept = 0 if in_groups and groups > 1 else blocks
        gradients[layer % 2] = max(gradients[layer % 2], tiles(padded, steps * kept))
        sums[layer % 2] = max(sums[layer % 2], kept * padded * 4 if has_bias else 0)
        left = max(left, tiles(fan_in, steps), tiles(BLOCK_ROWS, -(-max(fan_in, fan_out) // 32)))
        right = max(right, tiles(padded, steps) if in_groups and groups > 1 else 0)
    own = threads * (left + right) if blocks else 0
    return net + own, batch + sum(gradients) + sum(sums)


def reference_need(
    architecture: Architecture,
    optimizer: Optimizer,
    rows: int,
    dtype: torch.dtype,
    matmul_precision: MatmulPrecision = "highest",
) -> Need:
    """Counted low: the net again for the way back, gradients, the optimizer's state twice, and what autograd keeps.

    Of operands that are rounded, those of the output layer's first product: all else is there while it is formed.
    """
    a = architecture
    net = 2 * net_bytes(a, dtype) + 2 * _state_bytes(a, optimizer, dtype)
    kept = 1 if a.norm == "none" else 2  # of a hidden layer: its output, and the input of its norm
    batch = rows * (a.in_features + kept * sum(a.hidden_layer_sizes) + a.out_features) * dtype.itemsize
    copies = NUMBERS[matmul_precision] * dtype.itemsize
    net += copies * a.sizes[-2] * a.out_features
    batch += copies * rows * a.sizes[-2]
    return Need(net, batch, 0, rows, dtype)


def _state_bytes(architecture: Architecture, optimizer: Optimizer, dtype: torch.dtype) -> int:
    """The optimizer's state as tensors, which a resumed run continues from."""
    return len(optimizer.state_names) * net_bytes(architecture, dtype, buffers=False)


def describe(architecture: Architecture) -> str:
    """The net in a message."""
    return f"a net of sizes {'-'.join(map(str, architecture.sizes))}"


def _groups(blocks: int, weights: int) -> int:
    """``groups_of`` in native/network.cpp."""
    groups, most = 1, min(64, blocks // 4, (1 << 21) // max(1, weights))
    while groups * 2 <= most:
        groups *= 2
    return groups


def _whole(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _odd_lines(count: int, line: int) -> int:
    whole = _whole(count, line)
    return whole if whole // line % 2 else whole + line
