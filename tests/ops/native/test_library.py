"""Whether the operators can be had: one warning where they cannot, none where nobody wants them."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest
import torch

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
from exprune_fx.ops.native import build, library
from tests.ops.native import small

ASK_TWICE = "print(available(), available(), isa())"


def test_without_a_compiler_one_warning_says_what_runs_instead(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    (tmp_path / "bin").mkdir()
    output = small.run(sources, ASK_TWICE, PATH=str(tmp_path / "bin"), CXX="g++", EXPRUNE_CACHE_DIR=str(tmp_path))
    assert "False False reference" in output
    assert output.count("WARNING") == 1
    assert "native kernels are off, the readable form runs instead: no C++ compiler" in output
    assert "install g++" in output


@pytest.fixture
def asked_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As if nobody had asked for the operators in this process; they are to be built from sources in this directory."""
    monkeypatch.setattr(library, "_failure", functools.cache(library._failure.__wrapped__))
    monkeypatch.setattr(library, "_present", lambda: False)
    monkeypatch.setattr(build, "SOURCES", small.write_empty_sources(tmp_path / "csrc"))
    monkeypatch.setattr(build, "manifest", lambda isas: small.UNITS)
    monkeypatch.setenv("EXPRUNE_KERNELS", "auto")
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def compile_with(monkeypatch: pytest.MonkeyPatch, path: Path, program: str) -> None:
    """Makes a Python program the compiler."""
    path.write_text(f"#!{sys.executable}\nimport sys\n{program}\n")
    path.chmod(0o755)
    monkeypatch.setattr(build, "find_compiler", lambda: (str(path), "1.0"))


def the_only_warning(caplog: pytest.LogCaptureFixture) -> str:
    """Asked twice, the answer is no, and there is one warning."""
    assert (native.available(), native.available(), native.isa()) == (False, False, "reference")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    return record.getMessage()


def test_a_compiler_that_fails_is_one_warning(
    asked_anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compile_with(monkeypatch, asked_anew / "broken-c++", "sys.exit('out of order')")
    assert "out of order" in the_only_warning(caplog)


def test_a_library_that_cannot_be_loaded_is_one_warning(
    asked_anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = "open(sys.argv[sys.argv.index('-o') + 1], 'w').write('no library')"
    compile_with(monkeypatch, asked_anew / "fake-c++", program)
    assert "cannot be loaded" in the_only_warning(caplog)


@pytest.mark.usefixtures("asked_anew")
def test_the_forced_reference_neither_builds_nor_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EXPRUNE_KERNELS", "reference")
    monkeypatch.setattr(build, "build", lambda: pytest.fail("built"))
    assert (native.available(), native.isa()) == (False, "reference")
    assert not caplog.records


def test_kernels_that_are_demanded_raise_where_they_cannot_be_had(
    asked_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_with(monkeypatch, asked_anew / "broken-c++", "sys.exit('out of order')")
    monkeypatch.setenv("EXPRUNE_KERNELS", "native")
    for _ in range(2):
        with pytest.raises(KernelError, match="out of order"):
            native.available()


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_KERNELS", "fast")
    with pytest.raises(KernelError, match="EXPRUNE_KERNELS is 'fast'\n  what to do: one of auto, native, reference"):
        native.available()


@small.needs_compiler
def test_threads_that_ask_at_once_build_once(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(4) as pool:\n    print(list(pool.map(lambda _: available(), range(4))))"
    )
    output = small.run(sources, code, EXPRUNE_CACHE_DIR=str(tmp_path / "cache"))
    assert "[True, True, True, True]" in output
    assert output.count("building native kernels") == 1


@small.needs_compiler
def test_kernels_for_another_processor_are_one_warning_and_no_illegal_instruction(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    refusal = 'throw std::runtime_error("no kernels for this processor: the library was compiled for avx512")'
    (sources / "kernels.cpp").write_text(
        f'#include <stdexcept>\n#include "kernels.h"\nstd::string isa_name() {{ {refusal}; }}\n'
    )
    output = small.run(sources, ASK_TWICE, EXPRUNE_CACHE_DIR=str(tmp_path / "cache"))
    assert "False False reference" in output
    assert output.count("WARNING") == 1
    assert "compiled for avx512" in output


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
@small.needs_compiler
def test_operators_that_somebody_else_has_loaded_are_taken(tmp_path: Path) -> None:
    """A second copy would register them twice, which ends the process."""
    sources = small.write_sources(tmp_path / "csrc")
    code = "import torch\ntorch.ops.load_library(str(build.build()))\nprint(available(), isa())"
    assert "True portable" in small.run(sources, code, EXPRUNE_CACHE_DIR=str(tmp_path))


def test_an_instruction_set_that_was_not_compiled_is_refused() -> None:
    before = native.isa()
    for any_of_them in ("auto", "all", ""):
        torch.ops.exprune._force_isa(any_of_them)
        assert native.isa() == before
    with pytest.raises(RuntimeError, match=r"exprune: no kernels for neon: .*compiled for .*portable"):
        torch.ops.exprune._force_isa("neon")
    assert native.isa() == before
