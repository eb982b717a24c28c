"""Export to ONNX, by torch's own exporter, into a file that is whole or absent."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from wholebatch.feedforward.module import FeedForward
from wholebatch.files import write

LARGEST = 2**31 - 1  # bytes of a protobuf message, and so of an ONNX file


def to_onnx(net: FeedForward, path: str | os.PathLike[str]) -> None:
    """Write the net in ONNX: input ``x`` ``(batch, in_features)``, output ``output`` ``(batch, out_features)``.

    It is the net in eval mode (running statistics, no dropout), in its own dtype; the number of rows is free. The net
    stays as it is.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: a net that is too large for one file.
        OSError: the file cannot be written; none is left behind.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {' and '.join(missing)}: pip install 'wholebatch[onnx]'")
    size = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    if size > LARGEST:
        raise ValueError(f"the net has {size} bytes, an ONNX file holds at most {LARGEST}; use fewer neurons")
    net = copy.deepcopy(net).cpu().eval()
    x = torch.zeros(2, net.architecture.in_features, dtype=net.layers[0].weight.dtype)  # type: ignore[arg-type]
    with _quiet():
        program = torch.onnx.export(
            net,
            (x,),
            dynamo=True,
            input_names=["x"],
            output_names=["output"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    write(Path(path), program.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter says about itself: its own deprecated calls, and packages that it does not find."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
