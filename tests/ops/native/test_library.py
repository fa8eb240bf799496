"""Whether the operators can be had: one warning where they cannot, none where nobody wants them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
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


def test_a_compiler_that_fails_is_one_warning(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    broken = tmp_path / "broken-c++"
    broken.write_text(f"#!{sys.executable}\nimport sys\nsys.exit(0 if '--version' in sys.argv else 'out of order')\n")
    broken.chmod(0o755)
    output = small.run(sources, ASK_TWICE, CXX=str(broken), EXPRUNE_CACHE_DIR=str(tmp_path / "cache"))
    assert "False False reference" in output
    assert output.count("WARNING") == 1
    assert "out of order" in output


def test_a_library_that_cannot_be_loaded_is_one_warning(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    fake = tmp_path / "fake-c++"
    fake.write_text(
        f"#!{sys.executable}\nimport sys\nif '-o' in sys.argv:\n    open(sys.argv[sys.argv.index('-o') + 1], 'w').write('no library')\n"
    )
    fake.chmod(0o755)
    output = small.run(sources, ASK_TWICE, CXX=str(fake), EXPRUNE_CACHE_DIR=str(tmp_path / "cache"))
    assert "False False reference" in output
    assert output.count("WARNING") == 1
    assert "cannot be loaded" in output


def test_the_forced_reference_neither_builds_nor_warns(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    output = small.run(sources, ASK_TWICE, EXPRUNE_KERNELS="reference", EXPRUNE_CACHE_DIR=str(tmp_path / "cache"))
    assert output.strip() == "False False reference"
    assert not (tmp_path / "cache").exists()


def test_kernels_that_are_demanded_raise_where_they_cannot_be_had(tmp_path: Path) -> None:
    sources = small.write_sources(tmp_path / "csrc")
    code = "from exprune_fx.errors import KernelError\ntry:\n    available()\nexcept KernelError as e:\n    print('raised', e)"
    output = small.run(
        sources, code, EXPRUNE_KERNELS="native", PATH="", CXX="g++", EXPRUNE_CACHE_DIR=str(tmp_path / "cache")
    )
    assert "raised no C++ compiler" in output


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
def test_an_instruction_set_that_was_not_compiled_is_refused() -> None:
    before = native.isa()
    with pytest.raises(RuntimeError, match=r"exprune: no kernels for neon: .*compiled for .*portable"):
        torch.ops.exprune._force_isa("neon")
    assert native.isa() == before
