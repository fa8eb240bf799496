"""The command line. Every command is a file of `exprune_fx.cli.commands`.

Exit status 0: done; 1: it failed; 2: the call itself was wrong. What went wrong is one line on standard error.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from exprune_fx.cli.commands.bench import bench
from exprune_fx.cli.commands.demo import demo
from exprune_fx.cli.commands.experiment import experiment
from exprune_fx.cli.commands.explain import explain
from exprune_fx.cli.commands.optimize import optimize
from exprune_fx.cli.commands.reproduce import reproduce
from exprune_fx.cli.commands.shrink import shrink

app = typer.Typer(
    help="Finds which numbers in a PyTorch model are interchangeable, and uses that to compute less.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (demo, explain, optimize, shrink, bench, experiment, reproduce):
    app.command()(command)


def main() -> None:
    """The console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"exprune_fx {version('exprune_fx')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Finds which numbers in a PyTorch model are interchangeable, and uses that to compute less."""
