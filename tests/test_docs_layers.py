"""The examples of docs/layers.md run, each by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "layers.md").read_text()
# A heading, and the first block of Python under it, for every block on the page.
BLOCKS = [
    pytest.param(block, id=f"{section.splitlines()[0]} {number}")
    for section in re.split(r"^#+ ", PAGE, flags=re.MULTILINE)[1:]
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_runs(block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/layers.md", "exec"), {"__name__": "__main__"})


def test_every_feature_has_an_example() -> None:
    shown = "\n".join(block.values[0] for block in BLOCKS)  # type: ignore[misc]
    for name in ("mask=", "residual=", "activation=", "batch_norm(", "torch.compile(", "torch.export"):
        assert name in shown
