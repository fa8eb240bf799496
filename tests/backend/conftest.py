"""Every test starts without compiled code, with everything unsaid, and with fused operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from exprune_fx.backend import once
from exprune_fx.ops import native
from tests.passes.fused import need_operators


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not native.available():
        need_operators()  # stand-ins
        monkeypatch.setattr(native, "available", lambda: True)
    torch._dynamo.reset()
    once.forget()
    yield
    torch._dynamo.reset()
