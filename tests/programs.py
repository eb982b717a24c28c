"""Python programs in a process of their own: what a variable of the environment decides is decided once in each."""

from __future__ import annotations

import os
import subprocess
import sys


def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the text of a program, warnings being errors, with these variables added to the environment."""
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
