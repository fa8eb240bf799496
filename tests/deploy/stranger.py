"""A fresh process that has torch, and in which this library cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_BLOCKER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "exprune_fx":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import exprune_fx
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("this library can be imported")
import torch
"""


@contextmanager
def one_thread() -> Iterator[None]:
    """As the stranger has: sums that threads share are rounded by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_stranger(code: str, folder: Path, **environment: str) -> str:
    """Runs Python in a folder of files, one thread; what it prints."""
    command = [sys.executable, "-c", f"{_BLOCKER}\ntorch.set_num_threads(1)\n{code}"]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
