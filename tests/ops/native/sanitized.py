"""Runs this directory's agreement tests with a library that watches every access and every undefined operation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Null and out-of-object accesses end in AddressSanitizer's hands anyway; to check for them twice doubles the compile time.
FLAGS = (
    "-fsanitize=address,undefined -fno-sanitize=null,object-size,vptr -fno-sanitize-recover=all "
    "-fno-omit-frame-pointer -g1 -O1"
)


def runtime(compiler: str) -> str | None:
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


def run_tests(preload: str, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs pytest over tests of the kernels, with few examples; both streams go to stdout."""
    environment = {
        **os.environ,
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "EXPRUNE_KERNELS": "native",
        "EXPRUNE_ISA": "auto",  # to compile the others would take most of the time
        "EXPRUNE_CXXFLAGS": FLAGS,
        "EXPRUNE_CACHE_DIR": str(directory),
        "OMP_NUM_THREADS": "1",
    }
    names = ("agreement", "codes", "coded_heads", "election", "split")
    tests = [str(Path(__file__).parent / f"test_{name}.py") for name in names]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "-x",
        "--capture=sys",
        "--hypothesis-profile=sanitized",
        "-k",
        "not opcheck",  # of fake tensors, which have no memory to miss
        *tests,
    ]
    return subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
