"""Compiles the C++ of this package into one shared library, once for each compiler, torch, source and instruction set.

Of the instruction sets only the best that this processor has is compiled; ``EXPRUNE_ISA`` names another one, or "all"
for a library that is to go to other machines. The library is found again by a hash of everything that it was made from,
so that machines of different processors may share one cache. It links to libtorch_cpu by name and with a
run path: inside Python the copy that torch has loaded is taken, and a program without Python (an AOTInductor package's
runner) that loads the library gets its symbols too, which it would not if they were left undefined.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from exprune_fx.errors import KernelError
from exprune_fx.ops.native import cache

_log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
_READABLE = "or set EXPRUNE_KERNELS=reference to run the readable form without this message"
# No product is added before it is rounded, unless a kernel says so: who stops is alike on all instruction sets.
_FLAGS = ("-O3", "-std=c++20", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden")
_SHOWN_LINES = 20  # of the compiler's output, in an error


@dataclass(frozen=True)
class Unit:
    """One translation unit.

    Attributes:
        source: file name within the sources' directory.
        flags: what this unit is compiled with besides the flags of all.
    """

    source: str
    flags: tuple[str, ...] = ()


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *_AVX2, "-mprefer-vector-width=512")
_FLAGS_OF = {
    "portable": ("-DEXPRUNE_ISA=0",),
    "avx2": ("-DEXPRUNE_ISA=2", *_AVX2),
    "avx512": ("-DEXPRUNE_ISA=5", *_AVX512),
}
_DTYPES = ("Float32", "BFloat16", "Half")  # in a unit each: so are all cores busy

ISAS = tuple(_FLAGS_OF)
"""The instruction sets that there are kernels for, the least first."""


def isas_of(machine: str) -> tuple[str, ...]:
    """Those that processors of a kind may have, as `platform.machine` names it."""
    return ISAS if machine.lower() in ("x86_64", "amd64") else ISAS[:1]


def chosen_isas() -> tuple[str, ...]:
    """What ``EXPRUNE_ISA`` says: one by its name, "all", or the best that this processor has ("auto", the default).

    Raises:
        KernelError: it says something else.
    """
    setting, possible = os.environ.get("EXPRUNE_ISA") or "auto", isas_of(platform.machine())
    if setting == "all":
        return possible
    if setting == "auto":
        best = {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "portable")
        return (best if best in possible else "portable",)
    if setting not in possible:
        raise KernelError(
            f"EXPRUNE_ISA is {setting!r}", hint=f"auto, all, or one of {', '.join(possible)}; or leave it unset"
        )
    return (setting,)


def manifest(isas: tuple[str, ...]) -> tuple[Unit, ...]:
    """The units of a library with the kernels of some instruction sets, those for lesser ones first.

    The order is the link order. Of an inline function that several units instantiate the linker keeps the first copy,
    so that what portable code calls never comes from a unit compiled for instructions that the processor may lack.
    """
    known = [isa for isa in ISAS if isa in isas]
    kernels = [Unit("kernels.cpp", (*_FLAGS_OF[isa], f"-DEXPRUNE_DTYPE={dtype}")) for isa in known for dtype in _DTYPES]
    compiled = tuple(f"-DEXPRUNE_{isa.upper()}=1" for isa in known)
    return (Unit("operators.cpp", compiled), Unit("arguments.cpp"), Unit("tensors.cpp"), Unit("election.cpp"), *kernels)


@dataclass(frozen=True)
class Recipe:
    """All that a library is made from.

    Attributes:
        compiler: command of the C++ compiler.
        compiler_version: what it says of itself.
        sources: directory of the units and of the headers that they include.
        units: in link order.
        compile_flags: of every unit.
        link_flags: of the library.
    """

    compiler: str
    compiler_version: str
    sources: Path
    units: tuple[Unit, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]

    def key(self) -> str:
        """SHA-256 over sources, flags, compiler, torch and machine, as hexadecimal digits."""
        digest = hashlib.sha256()
        parts = (self.compiler, self.compiler_version, self.units, self.compile_flags, self.link_flags)
        digest.update(repr((*parts, str(torch.__version__), platform.machine())).encode())
        for path in sorted(self.sources.iterdir()):
            if path.suffix in (".cpp", ".h"):
                content = path.read_bytes()
                digest.update(f"{path.name} {len(content)} ".encode() + content)
        return digest.hexdigest()


def find_compiler() -> tuple[str, str]:
    """The C++ compiler that torch.compile uses, and its version.

    Raises:
        KernelError: there is none that runs.
    """
    if sys.platform == "win32":
        raise KernelError(
            "native kernels are not built on Windows", hint=f"nothing: the readable form runs; {_READABLE}"
        )
    try:
        # Imported here: it brings Inductor, which neither importing this package nor a run without kernels needs.
        from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415

        compiler = get_cpp_compiler()
        version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        raise KernelError(
            f"no C++ compiler for the native kernels: {error}",
            hint=f"install g++ 10 or newer, or name a compiler in CXX, {_READABLE}",
        ) from error
    return compiler, version


def recipe(
    sources: Path | None = None, units: tuple[Unit, ...] | None = None, isas: tuple[str, ...] | None = None
) -> Recipe:
    """The recipe for this machine; ``EXPRUNE_CXXFLAGS`` adds flags to compiling and linking.

    Args:
        sources: directory of the units; this package's.
        units: what is compiled; the kernels and operators for ``isas``.
        isas: some of `ISAS`; those that `chosen_isas` says.

    Raises:
        KernelError: there is no compiler, or ``EXPRUNE_ISA`` makes no sense.
    """
    compiler, version = find_compiler()
    root = Path(torch.__file__).parent
    extra = tuple(shlex.split(os.environ.get("EXPRUNE_CXXFLAGS", "")))
    return Recipe(
        compiler,
        version,
        SOURCES if sources is None else sources,
        manifest(chosen_isas() if isas is None else isas) if units is None else units,
        (*_FLAGS, f"-I{root / 'include'}", *extra),
        ("-shared", f"-L{root / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}", *extra),
    )


def build(made_from: Recipe | None = None) -> Path:
    """The path of the library, compiled if it is not in the cache or is not what was put there.

    Several processes may call this at once: one compiles, the others wait for it. Nothing is ever written into a file
    that another process may have loaded.

    Raises:
        KernelError: no compiler, a failing compile, or nowhere to write.
    """
    made_from = recipe() if made_from is None else made_from
    name = f"exprune_fx-{made_from.key()[:32]}.so"
    found = cache.find(name)
    if found is not None:
        return found
    directory = cache.writable_directory()
    with cache.only_one(directory / f"{name}.lock"):
        library = directory / name
        if not cache.is_intact(library):
            _log.info("building native kernels, once, into %s", library)
            with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=directory) as scratch:
                cache.put(_compile(made_from, Path(scratch)), library)
        return library


def _compile(made_from: Recipe, scratch: Path) -> Path:
    def compile_unit(index: int) -> Path:
        unit, target = made_from.units[index], scratch / f"{index}.o"
        source = made_from.sources / unit.source
        _run(made_from.compiler, *made_from.compile_flags, *unit.flags, "-c", str(source), "-o", str(target))
        return target

    count = len(made_from.units)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = [*pool.map(compile_unit, reversed(range(count)))][::-1]  # those that take longest first
    library = scratch / "library.so"
    _run(made_from.compiler, *map(str, objects), *made_from.link_flags, "-o", str(library))
    return library


def _run(*command: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        output = "\n".join(done.stdout.splitlines()[-_SHOWN_LINES:])
        raise KernelError(
            f"the native kernels do not compile: {shlex.join(command)} failed with {done.returncode}\n{output}",
            hint=f"use g++ 10 or newer (CXX names the compiler), {_READABLE}",
        )
