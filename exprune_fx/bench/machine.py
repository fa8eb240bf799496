"""The machine that a benchmark runs on, and how fast it can be at best."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from exprune_fx.ops import native

_COPY_BYTES = 256 * 2**20  # far more than any cache holds
_QUICK_BYTES = 16 * 2**20
_MATRIX, _QUICK_MATRIX = 2048, 256
_REPEATS = 7
_PRODUCT_S = 0.5  # that one product may take: where a dtype has no instructions, a large one takes a minute


@dataclass(frozen=True)
class Machine:
    """What the times depend on.

    Attributes:
        cpu: the model's name.
        cores: that this process may use.
        threads: that torch uses.
        isa: instruction set that torch's own kernels use.
        kernels_isa: that the fused operators use; "reference" where they cannot be had.
        torch_version: of the installed torch.
        system: operating system and architecture.
        copy_gb_per_s: of a large copy, bytes read and bytes written, 1e9 a second.
        read_gb_per_s: of a large sum, bytes read.
        matmul_gflop_per_s: of a large square matrix product, by dtype, 2 FLOPs per multiply-add.
    """

    cpu: str
    cores: int
    threads: int
    isa: str
    kernels_isa: str
    torch_version: str
    system: str
    copy_gb_per_s: float
    read_gb_per_s: float
    matmul_gflop_per_s: dict[str, float]

    def matmul(self, dtype: str) -> float | None:
        """The ceiling for this dtype, if it was measured."""
        return self.matmul_gflop_per_s.get(dtype)


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def measure_machine(dtypes: Sequence[torch.dtype], *, quick: bool = False) -> Machine:
    """Names the machine and measures its ceilings, at the threads that torch now has.

    Args:
        dtypes: of the matrix products.
        quick: smaller tensors: a check that it works, no ceiling.
    """
    copied, read = _bandwidths(_QUICK_BYTES if quick else _COPY_BYTES)
    size = _QUICK_MATRIX if quick else _MATRIX
    return Machine(
        cpu=_cpu_name(),
        cores=cores(),
        threads=torch.get_num_threads(),
        isa=torch.backends.cpu.get_cpu_capability(),
        kernels_isa=native.isa(),
        torch_version=torch.__version__,
        system=f"{platform.system()} {platform.machine()}",
        copy_gb_per_s=copied,
        read_gb_per_s=read,
        matmul_gflop_per_s={name_of(dtype): _matmul(dtype, size) for dtype in dtypes},
    )


def name_of(dtype: torch.dtype) -> str:
    """The dtype's short name: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bandwidths(size: int) -> tuple[float, float]:
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    copy_s = _shortest(lambda: target.copy_(source))
    read_s = min(_shortest(source.sum), _shortest(lambda: torch.dot(source, source)))
    return 2 * size / copy_s / 1e9, size / read_s / 1e9


def _matmul(dtype: torch.dtype, largest: int) -> float:
    """GFLOP/s of the best of several sizes, doubled up to the largest as long as a product does not take too long."""
    best, size = 0.0, _QUICK_MATRIX
    while size <= largest:
        product_s = _product_s(dtype, size)
        best = max(best, 2 * size**3 / product_s / 1e9)
        if 8 * product_s > _PRODUCT_S:
            break
        size *= 2
    return best


def _product_s(dtype: torch.dtype, size: int) -> float:
    left = torch.randn(size, size).to(dtype)
    right = torch.randn(size, size).to(dtype)
    return _shortest(lambda: left @ right)


def _shortest(call: Callable[[], object]) -> float:
    """Seconds: a ceiling is the best that the machine was seen to do."""
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
