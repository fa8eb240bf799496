"""What holds for all tests: as many worker processes as cores (see pyproject.toml), and one thread in each.

Native kernels are compiled for every instruction set, so that tests can ask for each that the processor has.
"""

from __future__ import annotations

import os

import torch

os.environ.setdefault("EXPRUNE_ISA", "all")
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
