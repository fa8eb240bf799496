"""Optional packages: imported when they are needed, and named where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from exprune_fx.errors import DataError


def optional_module(name: str, needed: str, install: str) -> Any:
    """The module of an optional package.

    Args:
        name: of the module.
        needed: what needs which package, as "drawing needs matplotlib".
        install: what pip is to install.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{needed}, which is not installed", hint=f"pip install {install}") from error
