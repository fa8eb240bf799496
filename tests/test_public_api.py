"""The public surface: what it has, what its names collide with, and what importing it drags in."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import version

import exprune_fx

FUNCTIONS = {
    "calibrate",
    "calibrate_heads",
    "capture",
    "explain",
    "export_onnx",
    "export_package",
    "export_program",
    "find_heads",
    "find_sites",
    "load",
    "measure",
    "normalise",
    "optimize",
    "python_text",
    "save",
    "search_guards",
    "shrink",
    "symmetries",
    "transform",
    "verify",
}


def public() -> dict[str, object]:
    names = [name for name in dir(exprune_fx) if not name.startswith("_") and name != "TYPE_CHECKING"]
    return {name: value for name in names if not inspect.ismodule(value := getattr(exprune_fx, name))}


def test_the_functions_are_these() -> None:
    assert {name for name, value in public().items() if inspect.isfunction(value)} == FUNCTIONS


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(exprune_fx.__path__)}
    assert "calibration" in modules
    assert not modules & public().keys()


def test_everything_public_says_what_it_is() -> None:
    assert not [name for name, value in public().items() if not (inspect.getdoc(value) or "").strip()]


def test_errors_are_public_and_of_one_family() -> None:
    errors = {name for name in vars(exprune_fx.errors) if name.endswith("Error")}
    assert errors <= public().keys()
    assert all(issubclass(getattr(exprune_fx, name), exprune_fx.ExpruneError) for name in errors)


def test_the_version_is_the_installed_one() -> None:
    assert exprune_fx.__version__ == version("exprune_fx")


def test_importing_loads_nothing_optional() -> None:
    code = "import sys; from exprune_fx import *; assert capture; print([m for m in ('transformers', 'torch_geometric', 'matplotlib', 'scipy', "
    code += "'typer', 'nbformat') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_star_import_gives_what_is_public() -> None:
    namespace: dict[str, object] = {}
    exec("from exprune_fx import *", namespace)
    assert {name for name in namespace if not name.startswith("_")} == public().keys()


def test_modules_are_attributes_and_other_names_are_not() -> None:
    code = "import exprune_fx; print(exprune_fx.guards.Bound is exprune_fx.Bound, hasattr(exprune_fx, 'nonsense'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
