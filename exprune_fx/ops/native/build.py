"""Compiles the C++ of this package into one shared library, once for each compiler, torch and source.

The library is found again by a hash of everything that it was made from. It links to libtorch_cpu by name and with a
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
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden")
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


_PORTABLE = Unit("kernels.cpp", ("-DEXPRUNE_ISA=0",))
_X86_64 = (
    Unit("operators.cpp", ("-DEXPRUNE_X86=1",)),
    Unit("arguments.cpp"),
    _PORTABLE,
    Unit("kernels.cpp", ("-DEXPRUNE_ISA=2", "-mavx2", "-mfma", "-mf16c")),
    Unit(
        "kernels.cpp",
        (
            "-DEXPRUNE_ISA=5",
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"),
            "-mprefer-vector-width=512",
        ),
    ),
)
_ELSEWHERE = (Unit("operators.cpp"), Unit("arguments.cpp"), _PORTABLE)


def manifest(machine: str) -> tuple[Unit, ...]:
    """The units for a machine, as `platform.machine` names it, those for lesser instruction sets first.

    The order is the link order. Of an inline function that several units instantiate the linker keeps the first copy,
    so that what portable code calls never comes from a unit compiled for instructions that the processor may lack.
    """
    return _X86_64 if machine.lower() in ("x86_64", "amd64") else _ELSEWHERE


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


def recipe(sources: Path | None = None, units: tuple[Unit, ...] | None = None) -> Recipe:
    """The recipe for this machine; ``EXPRUNE_CXXFLAGS`` adds flags to compiling and linking.

    Raises:
        KernelError: there is no compiler.
    """
    compiler, version = find_compiler()
    root = Path(torch.__file__).parent
    extra = tuple(shlex.split(os.environ.get("EXPRUNE_CXXFLAGS", "")))
    return Recipe(
        compiler,
        version,
        SOURCES if sources is None else sources,
        manifest(platform.machine()) if units is None else units,
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

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(compile_unit, range(len(made_from.units))))
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
