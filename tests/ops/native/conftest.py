"""The instruction sets to test on; and fewer examples for the runs in which each takes many times longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from exprune_fx.ops import native

settings.register_profile("few", max_examples=15, deadline=None, database=None)


@pytest.fixture(params=("portable", "avx2", "avx512"))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this machine has, in turn."""
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    try:
        torch.ops.exprune._force_isa(request.param)
    except RuntimeError:
        pytest.skip(f"this machine has no {request.param}, or the library was compiled without it")
    assert native.isa() == request.param
    yield request.param
    torch.ops.exprune._force_isa("")
