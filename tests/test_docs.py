"""What the documents show is what the project does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forks import server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [
    pytest.param(block, id=f"{page.name} {number}")
    for page in PAGES
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL), 1
    )
]


def test_the_page_of_commands_is_what_help_prints() -> None:
    # in a process of its own: click keeps a command's --help as it was first asked for, here by other tests
    program = "import sys; sys.path.insert(0, 'docs'); import make_commands; sys.stdout.write(make_commands.page())"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == result.stdout, "run `make docs`"


def test_the_page_of_costs_has_the_numbers_of_its_recordings() -> None:
    program = "import sys; sys.path.insert(0, 'docs'); import make_cost as m; sys.stdout.write(m.page(m.recordings()))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    page = ROOT / "docs" / "does-batch-norm-break-parallelism.md"
    assert page.read_text(encoding="utf-8") == result.stdout, "run `python docs/make_cost.py`"


@pytest.mark.parametrize("block", EXAMPLES)
def test_every_python_example_runs(block: str, tmp_path: Path) -> None:
    # Each by itself, in a process of its own: a new one that has the libraries imported.
    process = server().Process(target=run_example, args=(block, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{block}\n{(tmp_path / 'stderr').read_text()}"


def run_example(block: str, folder: Path) -> None:
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    exec(compile(block, "an example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text) + re.findall(r'src="([^":]+)"', text)
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []
