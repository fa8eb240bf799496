"""The agreement tests once more: watched by sanitizers; and for AVX-512 where the processor has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from exprune_fx.ops.native import build
from tests.ops.native import otherwise_built, small


def _check(built: Mapping[str, str], cache: Path) -> None:
    done = otherwise_built.run_tests(built, cache)
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert int(passed[1] if passed else 0) > 100, done.stdout[-600:]  # not skipped


@small.needs_compiler
def test_no_kernel_reads_or_writes_elsewhere_or_does_what_is_undefined(tmp_path: Path) -> None:
    """Takes two to five minutes, most of them compiling."""
    runtime = otherwise_built.sanitizer_runtime(build.find_compiler()[0])
    if runtime is None:
        pytest.skip("this compiler brings no libasan")
    _check(otherwise_built.sanitized(runtime), tmp_path)


@small.needs_compiler
@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX2", reason="for processors with AVX2 and no AVX-512")
def test_the_kernels_for_avx512_agree_where_it_is_emulated(tmp_path: Path) -> None:
    """So that a change which was made without such a processor does not wait for one to be seen wrong."""
    _check(otherwise_built.emulated_avx512(), tmp_path)
