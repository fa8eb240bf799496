"""The house as it is built: packages, the link to passes/, and names that do not collide."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import exprune_fx.passes

ROOT = Path(__file__).parents[1]


def test_passes_is_the_top_level_folder() -> None:
    assert Path(str(exprune_fx.passes.__file__)).samefile(ROOT / "passes" / "__init__.py")


def test_passes_refuses_a_second_name() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import passes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "import 'exprune_fx.passes', not 'passes'" in done.stderr


def test_packages_in_pyproject_are_the_tree() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    library = {p.parent.relative_to(ROOT) for p in (ROOT / "exprune_fx").rglob("__init__.py")}
    tree = {".".join(path.parts) for path in library} | {"exprune_fx.passes"}
    assert listed == tree


def test_every_pass_file_holds_one_pass_named_like_it() -> None:
    for path in sorted((ROOT / "passes").glob("[a-z]*.py")):
        name = path.stem.replace("_", "-")
        assert f'name: ClassVar[str] = "{name}"' in path.read_text(), f"{path.name} does not define the pass {name!r}"
