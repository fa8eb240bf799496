"""Runs this directory's agreement tests, in a process of their own, with a library that is built in another way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_HERE = Path(__file__).parent


def sanitized(runtime: str) -> dict[str, str]:
    """Every access and every undefined operation watched; `runtime` is what `sanitizer_runtime` found.

    Null and out-of-object accesses end in AddressSanitizer's hands anyway: to check for them twice doubles the compile
    time. So would the kernels for other instruction sets than this processor's best; to optimise adds a half.
    """
    return {
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "EXPRUNE_ISA": "auto",
        "EXPRUNE_CXXFLAGS": "-fsanitize=address,undefined -fno-sanitize=null,object-size,vptr "
        "-fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O0",
    }


def emulated_avx512() -> dict[str, str]:
    """The kernels for AVX-512, its instructions emulated by those of AVX2; VNNI's are written otherwise, and left out."""
    flags = f"-O0 -Wno-psabi -include {_HERE / 'avx512_emulated.h'}"
    return {"EXPRUNE_ISA": "avx512", "EXPRUNE_CXXFLAGS": flags}


def sanitizer_runtime(compiler: str) -> str | None:
    """What must be loaded before all else, as LD_PRELOAD takes it; None where the sanitizer's library is missing.

    The C++ library is of it: the sanitizer looks for the function that throws when it starts, and Python has none.
    """
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        named = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(named.stdout.strip())
        if not path.is_absolute():
            return None
        paths.append(str(path.resolve()))
    return " ".join(paths)


def run_tests(built: Mapping[str, str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Runs pytest over tests of the kernels, with few examples; both streams go to stdout.

    Args:
        built: environment variables that say how the library is built.
        cache: an empty directory for it.
    """
    environment = {**os.environ, **built}
    environment |= {"EXPRUNE_KERNELS": "native", "EXPRUNE_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    names = ("agreement", "codes", "coded_heads", "election", "rivals", "split")
    tests = [str(_HERE / f"test_{name}.py") for name in names]
    chosen = ["--hypothesis-profile=few", "-k", "not opcheck"]  # of fake tensors, which have no memory to miss
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "--capture=sys", *chosen, *tests],
        env=environment,
        cwd=_HERE.parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
