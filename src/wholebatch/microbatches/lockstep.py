"""``lockstep``: a model on parts of a mini-batch, exact as on the undivided one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from wholebatch.microbatches.conductor import conduct
from wholebatch.microbatches.models import bind, known_batch_norms
from wholebatch.microbatches.offload import Offload, store_maker


def lockstep(
    model: Callable[..., Any], parts: Iterable[Any], *, offload: Offload = "none", convert: bool = False
) -> list[Any]:
    """``[model(part) for part in parts]``, with the batch norms of the mini-batch that the parts make up together.

    ::

        outputs = wholebatch.lockstep(model, x.chunk(8))
        loss = sum(criterion(output, target) for output, target in zip(outputs, targets)) / 8
        loss.backward()

    Outputs, gradients and running statistics are those of the undivided mini-batch, within rounding: at each batch norm
    in training mode the parts wait for each other, forward and backward, and running statistics move once. If the
    layers share the mini-batch with other processes, it is all ranks' parts; their numbers may differ.

    One ``backward`` serves all parts; an output that takes no part in the loss counts as one with a gradient of zero.
    What lockstep computed can be differentiated once.

    Random numbers: part ``p`` draws what it would after ``torch.manual_seed(seed + p)``, with one ``seed`` drawn by
    ``torch.randint(2**62, ())`` at the beginning, so a dropout's mask depends on no other part.

    DistributedDataParallel goes around the model as ever; it sends its buffers once, and reduces gradients once. A
    checkpoint inside needs ``use_reentrant=False, context_fn=wholebatch.replay``. Of a model under torch.compile,
    what is between the batch norms is compiled; so ``fullgraph=True`` cannot be.

    Args:
        model: a module, or another function, called once for each part.
        parts: each a tensor or another single input, a tuple of inputs, or a dict of them by keyword. They may have
            different numbers of rows, also 0.
        offload: where tensors are that wait, see the page on lockstep: ``"none"`` leaves them, ``"cpu"`` puts them in
            host memory, ``"recompute"`` forms them again in backward.
        convert: change the model's batch norms into wholebatch's before, in place, see :func:`wholebatch.convert`.

    Returns:
        What the model returned, in the order of the parts.

    Raises:
        LockstepError: the parts do not pass the same batch norms in the same order; it lists where each stands.
        TypeError: a batch norm of another library would normalise each part by itself: it is named. Or a model under
            FSDP2, which takes parameters away that a waiting part still needs.
        ValueError: no parts, an unknown ``offload``, one value per channel in the whole mini-batch, or a checkpoint
            around batch norms that would recompute them alone.
        RuntimeError: inside of a part.

    Whatever a part raises is raised here, after the others were unwound and running statistics brought back.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("there are no parts; lockstep takes at least 1")
    make_store = store_maker(offload, model, parts)
    with known_batch_norms(model, convert), conduct(bind(model, parts), make_store, offload != "none") as outputs:
        return outputs
