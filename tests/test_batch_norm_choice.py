"""Which kernel of batch norm serves an input, and the variable that keeps to one."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_inputs import DTYPES, native_only
from tests.programs import run
from wholebatch.kernels.batch_norm import Native, Reference, choose_kernel


@native_only
def test_the_compiled_kernel_is_chosen_where_it_serves() -> None:
    mask = torch.ones(4, 1, dtype=torch.bool)
    for dtype in DTYPES:
        assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=dtype), None), Native)
        assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=dtype), mask), Reference)
    assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=torch.float16), None), Reference)
    assert isinstance(choose_kernel(torch.zeros(4, 3, device="meta"), None), Reference)


@pytest.mark.parametrize(
    ("wish", "expected"), [("reference", "Reference"), ("quick", "known are native, gpu and reference")]
)
def test_the_twin_can_be_asked_for(wish: str, expected: str) -> None:
    program = (
        "import torch\nfrom wholebatch.kernels.batch_norm import choose_kernel\n"
        "try:\n    print(type(choose_kernel(torch.zeros(4, 3), None)).__name__)\nexcept ValueError as e:\n    print(e)"
    )
    assert expected in run(program, WHOLEBATCH_KERNELS=wish).stdout
