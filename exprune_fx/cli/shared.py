"""What the commands share: options, checks before the work, how they fail, and where they print."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from exprune_fx.errors import ExpruneError

FAILED, USAGE = 1, 2

JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; all cores by default.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.")]
ModelsOption = Annotated[
    list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model; may be repeated.")
]
RankingOption = Annotated[str, typer.Option("--ranking", help="global; layer: the same fraction everywhere.")]
CheckpointsOption = Annotated[
    Path | None, typer.Option("--checkpoints", metavar="DIR", help="Folder of trained weights, for VGG11-BN.")
]
_DATA_DIR = typer.Option("--data-dir", metavar="DIR", help="Folder of the data sets.")
DataDirOption = Annotated[Path | None, _DATA_DIR]
RequiredDataDirOption = Annotated[Path, _DATA_DIR]
ShapesOption = Annotated[
    list[str] | None,
    typer.Option("--input-shape", metavar="N,C,...", help="Shape of an input; repeat for each; float32 noise."),
]


class UsageError(Exception):
    """The command was called wrongly."""


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turns this library's errors, and wrong calls, into one line on standard error and an exit status."""
    try:
        yield
    except UsageError as error:
        _fail(str(error), USAGE)
    except ExpruneError as error:
        _fail(f"{error.what} ({error.hint})" if error.hint else error.what, FAILED)
    except OSError as error:
        _fail(str(error), FAILED)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"exprune: error: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


def output_console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for tables where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def check_one_of(option: str, value: str, names: Sequence[str]) -> None:
    """A choice.

    Raises:
        UsageError: the value is none of the names.
    """
    if value not in names:
        raise UsageError(f"{option} {value!r} is none of {', '.join(names)}")


def set_threads(threads: int | None) -> None:
    """Of torch; as it is where None."""
    if threads is not None:
        import torch  # noqa: PLC0415 - not for --help: it takes seconds

        torch.set_num_threads(threads)


def check_writable(*paths: Path | None) -> None:
    """Before the work, not after it.

    Raises:
        UsageError: a file could not be written.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"cannot write {str(path)!r}: it is a folder, or its folder is missing")


def write_json(path: Path | None, data: dict[str, Any]) -> None:
    """Where ``--json`` was given."""
    if path is not None:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def check_budget(budget: float | None) -> None:
    """A share of energy.

    Raises:
        UsageError: it is none.
    """
    if budget is not None and not 0 <= budget < 1:
        raise UsageError(f"--budget {budget:g} is not a share of energy: give at least 0 and below 1")


@contextlib.contextmanager
def progress(first: str) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status(first) as status:
        yield status.update


def parse_shape(text: str) -> tuple[int, ...]:
    """Sizes with commas between them.

    Raises:
        UsageError: it is something else.
    """
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--input-shape {text!r} is no shape: give positive sizes, such as 1,3,32,32")
    return tuple(map(int, sizes))


def let_import_from_here() -> None:
    """``package.module`` may lie in the current folder, as for ``python -m``."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def written_by(model: str | None = None) -> dict[str, Any]:
    """The first keys of every JSON file: the version of this library, and the model that was named."""
    return {"library": version("exprune_fx"), **({} if model is None else {"model": model})}
