"""The agreement tests once more, with AddressSanitizer and UndefinedBehaviorSanitizer watching the kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprune_fx.ops.native import build
from tests.ops.native import sanitized, small


@small.needs_compiler
def test_no_kernel_reads_or_writes_elsewhere_or_does_what_is_undefined(tmp_path: Path) -> None:
    """Takes two to five minutes, most of them compiling."""
    preload = sanitized.runtime(build.find_compiler()[0])
    if preload is None:
        pytest.skip("this compiler brings no libasan")
    done = sanitized.run_tests(preload, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout
