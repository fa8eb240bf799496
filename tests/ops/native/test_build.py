"""Building on first use: what the cache finds again, what it does not, and several processes at once."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exprune_fx.errors import KernelError
from exprune_fx.ops.native import build, cache
from tests.ops.native import small
from tests.ops.native.small import needs_compiler

BUILDING = "INFO exprune_fx.ops.native.build building native kernels, once, into"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return small.write_empty_sources(tmp_path / "csrc")


@pytest.fixture
def loadable(tmp_path: Path) -> Path:
    return small.write_sources(tmp_path / "csrc")


@needs_compiler
def test_a_second_process_finds_what_the_first_has_built(tmp_path: Path, loadable: Path) -> None:
    directory = str(tmp_path / "cache")
    first = small.run(loadable, "print(available(), isa())", EXPRUNE_CACHE_DIR=directory)
    assert BUILDING in first
    assert "True portable" in first
    second = small.run(loadable, "print(available(), isa())", EXPRUNE_CACHE_DIR=directory)
    assert "building" not in second
    assert "True portable" in second


@needs_compiler
def test_processes_that_start_at_once_with_an_empty_cache_all_load_and_one_compiles(
    tmp_path: Path, loadable: Path
) -> None:
    directory = str(tmp_path / "cache")
    started = [small.start(loadable, "print(available(), isa())", EXPRUNE_CACHE_DIR=directory) for _ in range(3)]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert all("True portable" in output for output in outputs), outputs
    assert sum(BUILDING in output for output in outputs) == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".sha256", ".so"]


@needs_compiler
def test_a_builder_is_waited_for_until_it_dies(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path))
    recipe = build.recipe(sources, small.UNITS)
    lock = tmp_path / f"exprune_fx-{recipe.key()[:32]}.so.lock"
    hold = "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with ThreadPoolExecutor(1) as pool:
            building = pool.submit(build.build, recipe)
            try:
                with pytest.raises(TimeoutError):
                    building.result(timeout=0.5)
            finally:
                holder.kill()
            assert cache.is_intact(building.result(timeout=300))


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "overwritten", "without digest"])
def test_a_damaged_library_is_built_again(
    tmp_path: Path, sources: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    recipe = build.recipe(sources, small.UNITS)
    library = build.build(recipe)
    whole = library.read_bytes()
    if damage == "without digest":
        library.with_suffix(".sha256").unlink()
    else:
        library.write_bytes(
            {"truncated": whole[: len(whole) // 2], "empty": b"", "overwritten": b"x" * len(whole)}[damage]
        )
    assert build.build(recipe) == library
    assert len(library.read_bytes()) == len(whole)
    assert cache.is_intact(library)


@needs_compiler
def test_the_key_hangs_on_all_that_a_library_is_made_from(sources: Path) -> None:
    recipe = build.recipe(sources, small.UNITS)
    keys = {
        recipe.key(),
        dataclasses.replace(recipe, compiler="/elsewhere/g++").key(),
        dataclasses.replace(recipe, compiler_version="g++ 99").key(),
        dataclasses.replace(recipe, units=small.UNITS[::-1]).key(),
        dataclasses.replace(recipe, compile_flags=("-O0",)).key(),
        dataclasses.replace(recipe, link_flags=()).key(),
    }
    for name in ("kernels.h", "kernels.cpp", "operators.cpp"):
        with (sources / name).open("a") as file:
            file.write("// changed\n")
        keys.add(recipe.key())
    assert len(keys) == 9


@needs_compiler
def test_flags_of_the_environment_are_used_and_change_the_key(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build.recipe(sources, small.UNITS)
    monkeypatch.setenv("EXPRUNE_CXXFLAGS", "-g '-DNAME=a b'")
    flagged = build.recipe(sources, small.UNITS)
    assert flagged.compile_flags[-2:] == flagged.link_flags[-2:] == ("-g", "-DNAME=a b")
    assert flagged.key() != plain.key()


@needs_compiler
def test_a_compile_that_fails_says_what_the_compiler_said(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    (sources / "kernels.cpp").write_text("this is no C++;\n")
    with pytest.raises(KernelError, match=r"(?s)kernels\.cpp.*error: .*what to do: use g\+\+ 10 or newer"):
        build.build(build.recipe(sources, small.UNITS))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"], "something was left behind"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_by_a_directory_of_the_user(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()  # also root cannot make a directory in a file
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    library = build.build(build.recipe(sources, small.UNITS))
    assert library.parent == tmp_path / "temporary" / f"exprune_fx-{os.getuid()}"
    assert library.parent.stat().st_mode & 0o77 == 0


def test_a_directory_that_others_can_write_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    shared = tmp_path / f"exprune_fx-{os.getuid()}"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(KernelError, match="no directory for the native kernels"):
        cache.writable_directory()


@needs_compiler
def test_a_library_in_a_directory_without_write_permission_is_used(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    recipe = build.recipe(sources, small.UNITS)
    library = build.build(recipe)
    monkeypatch.setattr(cache, "_can_write", lambda _: False)
    assert build.build(recipe) == library


@pytest.mark.parametrize(("machine", "isas"), [("x86_64", "025"), ("AMD64", "025"), ("aarch64", "0"), ("arm64", "0")])
def test_the_manifest_links_lesser_instruction_sets_first(machine: str, isas: str) -> None:
    units = build.manifest(build.isas_of(machine)[::-1])
    flags = [flag for unit in units for flag in unit.flags]
    assert [flag[-1] for flag in flags if flag.startswith("-DEXPRUNE_ISA=")] == [isa for isa in isas for _ in range(3)]
    special = [any(flag.startswith("-m") for flag in unit.flags) for unit in units]
    assert special == sorted(special)
    assert all(build.SOURCES.joinpath(unit.source).exists() for unit in units)


def test_every_source_is_compiled() -> None:
    assert {path.name for path in build.SOURCES.glob("*.cpp")} == {unit.source for unit in build.manifest(build.ISAS)}


# --- instruction sets -------------------------------------------------------------------------------------------------


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes this machine another one, as torch sees it."""

    def become(machine: str, capability: str) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)

    return become


@pytest.mark.parametrize(
    ("machine", "capability", "best"),
    [
        ("x86_64", "AVX512", "avx512"),
        ("AMD64", "AVX2", "avx2"),
        ("x86_64", "DEFAULT", "portable"),
        ("x86_64", "what comes after", "portable"),
        ("aarch64", "SVE256", "portable"),
        ("aarch64", "AVX512", "portable"),
    ],
)
def test_the_best_instruction_set_of_the_processor_is_compiled_and_no_other(
    processor: Callable[[str, str], None], machine: str, capability: str, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(machine, capability)
    for setting in ("", "auto"):
        monkeypatch.setenv("EXPRUNE_ISA", setting)
        assert build.chosen_isas() == (best,)
    monkeypatch.delenv("EXPRUNE_ISA")
    assert build.chosen_isas() == (best,)
    monkeypatch.setenv("EXPRUNE_ISA", "all")
    assert build.chosen_isas() == build.isas_of(machine)
    monkeypatch.setenv("EXPRUNE_ISA", "portable")
    assert build.chosen_isas() == ("portable",)


@pytest.mark.parametrize(("machine", "setting"), [("x86_64", "avx1024"), ("aarch64", "avx2")])
def test_an_instruction_set_that_there_are_no_kernels_for_is_refused(
    processor: Callable[[str, str], None], machine: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(machine, "DEFAULT")
    monkeypatch.setenv("EXPRUNE_ISA", setting)
    with pytest.raises(KernelError, match=f"EXPRUNE_ISA is '{setting}'\n  what to do: auto, all, or one of portable"):
        build.chosen_isas()


@needs_compiler
def test_machines_of_different_processors_may_share_a_cache(
    processor: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPRUNE_ISA", "auto")
    keys = set()
    for capability in ("AVX512", "AVX2", "DEFAULT"):
        processor("x86_64", capability)
        keys.add(build.recipe().key())
        assert build.recipe().key() in keys
    monkeypatch.setenv("EXPRUNE_ISA", "all")
    assert build.recipe().key() == build.recipe(isas=build.ISAS).key()
    assert len({*keys, build.recipe().key()}) == 4


@needs_compiler
def test_the_library_loads_into_a_program_without_python(
    tmp_path: Path, loadable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    library = build.build(build.recipe(loadable, small.UNITS))
    program = tmp_path / "program.cpp"
    program.write_text(
        "#include <dlfcn.h>\n#include <cstdio>\n"
        f'int main() {{ if (dlopen("{library}", RTLD_NOW)) return 0; std::puts(dlerror()); return 1; }}\n'
    )
    compiler, _ = build.find_compiler()
    subprocess.run([compiler, str(program), "-ldl", "-o", str(tmp_path / "program")], check=True)
    done = subprocess.run([str(tmp_path / "program")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_importing_the_package_builds_nothing_and_leaves_inductor_alone() -> None:
    code = "import sys, exprune_fx, exprune_fx.ops.native; print([m for m in sys.modules if m == 'torch._inductor.cpp_builder'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
