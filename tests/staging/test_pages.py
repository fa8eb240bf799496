"""Huge pages: advice that changes nothing but where the numbers lie."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from exprune_fx.staging import pages


def _huge_bytes() -> int:
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    return int(found.group(1)) * 1024 if found else 0


def test_large_weights_move_and_stay_the_same() -> None:
    if not pages._page_bytes():
        pytest.skip("this machine has no huge pages, or wants none")
    value = torch.arange(4 * 2**20, dtype=torch.float32)  # 16 MiB
    before, address, huge = value.clone(), value.data_ptr(), _huge_bytes()
    moved = pages.back_by_huge_pages([value])
    if not moved:
        pytest.skip("this kernel does not collapse pages on demand")
    assert moved >= 12 * 2**20
    assert _huge_bytes() - huge >= 12 * 2**20
    assert value.data_ptr() == address
    assert torch.equal(value, before)
    assert pages.back_by_huge_pages([value]) == moved, "twice is as good as once"


def test_small_tensors_and_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert pages.back_by_huge_pages([torch.zeros(10)]) == 0
    switch = tmp_path / "enabled"
    switch.write_text("always madvise [never]\n")
    monkeypatch.setattr(pages, "_SWITCH", switch)
    pages._page_bytes.cache_clear()
    try:
        assert pages.back_by_huge_pages([torch.zeros(4 * 2**20)]) == 0
    finally:
        pages._page_bytes.cache_clear()
