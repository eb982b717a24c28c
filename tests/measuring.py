"""``python -m benchmarks``, in this process."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import main


def run(*arguments: object) -> int:
    """The exit code of ``python -m benchmarks arguments``."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code
