"""What holds for all tests: as many worker processes as cores (see pyproject.toml), and one thread in each."""

from __future__ import annotations

import os

import torch

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
