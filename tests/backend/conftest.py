"""Every test starts without compiled code, and with everything unsaid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from exprune_fx.backend import once


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    once.forget()
    yield
    torch._dynamo.reset()
