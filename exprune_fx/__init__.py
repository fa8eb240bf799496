"""Find which numbers in a PyTorch model are interchangeable, and use that to compute less.

`capture` a model as a graph, `calibrate` a plan on data, `transform` the graph by the plan, `measure` what it did,
`explain` what was found, what was staged, and what was left dense and why.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING
from typing import Any as _Any

__version__ = _version("exprune_fx")

if TYPE_CHECKING:
    from exprune_fx._api import *  # noqa: F403 - all of them: they are listed there
else:  # a type checker that saw __getattr__ would let every name pass

    def __getattr__(name: str) -> _Any:
        """A public name, or a module, when it is first asked for: torch takes seconds, which ``--help`` need not."""
        if name == "__all__":
            return list(_public())
        if not name.startswith("_"):
            if _find_spec(f"{__name__}.{name}") is not None:
                return _import_module(f"{__name__}.{name}")
            if name in (public := _public()):
                globals().update(public)
                return public[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})


def _public() -> dict[str, _Any]:
    api = vars(_import_module(f"{__name__}._api"))
    return {name: value for name, value in api.items() if not name.startswith("_")}
