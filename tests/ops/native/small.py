"""A library small enough to compile in seconds, in the layout of the real one, to try the machinery with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exprune_fx.errors import KernelError
from exprune_fx.ops.native.build import Unit, find_compiler

UNITS = (Unit("operators.cpp"), Unit("kernels.cpp", ("-DEXPRUNE_ISA=0",)))

_KERNELS = """
#include "kernels.h"
std::string isa_name() { return "portable"; }
"""

_HEADER = """
#pragma once
#include <string>
std::string isa_name();
"""

_OPERATORS = """
#include <torch/csrc/stable/library.h>
#include "kernels.h"
static std::string kernels_isa() { return isa_name(); }
STABLE_TORCH_LIBRARY_FRAGMENT(exprune, m) {
  m.def("kernels_isa() -> str");
  m.def("staged_linear_relu(Tensor x) -> Tensor");
  m.def("staged_conv2d_relu(Tensor x) -> Tensor");
  m.def("staged_ffn(Tensor x) -> Tensor");
  m.def("staged_gated_ffn(Tensor x) -> Tensor");
  m.def("staged_argmax(Tensor x) -> Tensor");
  m.def("staged_topk(Tensor x) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(exprune, CompositeExplicitAutograd, m) {
  m.impl("kernels_isa", TORCH_BOX(&kernels_isa));
}
"""


def _has_compiler() -> bool:
    try:
        find_compiler()
    except KernelError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not _has_compiler(), reason="no C++ compiler here")


def write_sources(directory: Path, operators: str = _OPERATORS) -> Path:
    """Writes the small library's sources there."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kernels.cpp").write_text(_KERNELS)
    (directory / "kernels.h").write_text(_HEADER)
    (directory / "operators.cpp").write_text(operators)
    return directory


def write_empty_sources(directory: Path) -> Path:
    """The same without operators, for what never loads the library: torch's headers take seconds to compile."""
    return write_sources(directory, '#include "kernels.h"\n')


_PRELUDE = """
import logging, pathlib, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
from exprune_fx.ops.native import build, available, isa
from tests.ops.native import small
build.SOURCES = pathlib.Path(sys.argv[1])
build.manifest = lambda isas: small.UNITS
"""


def start(sources: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a fresh Python that is to build from these sources; both output streams go to stdout."""
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PRELUDE + code, str(sources)],
        cwd=root,
        env={**os.environ, "EXPRUNE_KERNELS": "", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(sources: Path, code: str, **environment: str) -> str:
    """What a fresh Python prints; asserts that it ends well."""
    process = start(sources, code, **environment)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
