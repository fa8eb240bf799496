"""The command line: ``exprune demo``, ``explain``, ``shrink``, ``bench``, ``exprune --version``.

Exit status 0: done; 1: it failed; 2: the call itself was wrong. What went wrong is one line on standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console

from exprune_fx.bench.selection import DTYPES, select_rows
from exprune_fx.cli import demo as demonstration
from exprune_fx.cli.bench import Settings, run_bench
from exprune_fx.cli.demo_report import demo_json, print_data, print_model
from exprune_fx.cli.shrink import CRITERIA, Ranking, Wanted, shrink_named
from exprune_fx.cli.subject import explain_subject, find_subject, is_model_name
from exprune_fx.errors import ExpruneError

FAILED, USAGE = 1, 2

app = typer.Typer(
    help="Finds which numbers in a PyTorch model are interchangeable, and uses that to compute less.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The console script."""
    app()


class UsageError(Exception):
    """The command was called wrongly."""


@contextlib.contextmanager
def _failures() -> Iterator[None]:
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


# --- what commands share ----------------------------------------------------------------------------------------------

_JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")]
_ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; all cores by default.")]


def _console() -> Console:
    """Standard output: as wide as the terminal, and wide enough for tables where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=120)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _check_writable(*paths: Path | None) -> None:
    """Before the work, not after it."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise UsageError(f"cannot write {str(path)!r}: it is a folder, or its folder is missing")


def _write_json(path: Path | None, data: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _check_budget(budget: float | None) -> None:
    if budget is not None and not 0 <= budget < 1:
        raise UsageError(f"--budget {budget:g} is not a share of energy: give at least 0 and below 1")


# --- demo -------------------------------------------------------------------------------------------------------------


@app.command()
def demo(
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model; may be repeated.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Share of each neuron's energy that stopping may lose on calibration.")
    ] = 0.01,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", metavar="DIR", help="Test on all 10,000 images of Fashion-MNIST in this folder."),
    ] = None,
    curves: Annotated[
        bool, typer.Option("--curves", help="Compare every rule at several settings (some minutes).")
    ] = False,
    json_path: _JsonOption = None,
    threads: _ThreadsOption = None,
) -> None:
    """Stages the shipped models, and prints accuracy and FLOPs, dense and staged.

    Weights and images ship with the library: nothing is fetched. No fine-tuning: the models' weights are used as they
    are. In the JSON, flops_dense, flops_staged (without the tests) and flops_overhead (the tests) are sums over all
    test images, flops_total = flops_staged + flops_overhead, and the _per_example keys are the same for one image.
    """
    with _failures():
        _check_budget(budget)
        _check_writable(json_path)
        _set_threads(threads)
        names = demonstration.check_names(model)
        console = _console()
        data = demonstration.load_data(data_dir)
        print_data(console, data, budget)
        candidates = demonstration.all_candidates() if curves else demonstration.few_candidates()
        results = []
        for name in names:
            with _progress(name) as say:
                results.append(demonstration.run_model(name, data, budget, candidates, say))
            print_model(console, results[-1])
        _write_json(json_path, demo_json(results, data, budget))


@contextlib.contextmanager
def _progress(first: str) -> Iterator[Any]:
    """A line on standard error that says what is being done; nothing where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status(first) as status:
        yield status.update


# --- explain ----------------------------------------------------------------------------------------------------------


@app.command()
def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:callable that returns a module or (module, args), a .pt2 file, or a shipped model.",
        ),
    ],
    input_shape: Annotated[
        list[str] | None,
        typer.Option("--input-shape", metavar="N,C,...", help="Shape of an input; repeat for each; float32 noise."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Also calibrate and stage, losing at most this share of energy."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page.")] = None,
    json_path: _JsonOption = None,
    threads: _ThreadsOption = None,
) -> None:
    """Says which symmetry groups and sites a model has, what can be staged, and what cannot and why.

    With --budget it also calibrates and stages the model; that needs real examples: a shipped model's, those of a .pt2
    file, or the args that the callable returns.
    """
    with _failures():
        _check_budget(budget)
        _check_writable(html, json_path)
        _set_threads(threads)
        shapes = [_parse_shape(text) for text in input_shape or []]
        if not is_model_name(model):
            raise UsageError(f"{model!r} names no model: give package.module:callable, a .pt2 file, or a shipped model")
        if "" not in sys.path:
            sys.path.insert(0, "")  # package.module may lie in the current folder, as for python -m
        found = explain_subject(find_subject(model, shapes), budget)
        _console().print(found)
        if html is not None:
            found.html(html)
        _write_json(json_path, {"library": version("exprune_fx"), "model": model, **found.to_dict()})


def _parse_shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(f"--input-shape {text!r} is no shape: give positive sizes, such as 1,3,32,32")
    return tuple(map(int, sizes))


# --- shrink -----------------------------------------------------------------------------------------------------------


@app.command()
def shrink(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="package.module:callable, as for explain, or a shipped model."),
    ],
    input_shape: Annotated[
        list[str] | None,
        typer.Option("--input-shape", metavar="N,C,...", help="Shape of an input; repeat for each; float32 noise."),
    ] = None,
    criterion: Annotated[str, typer.Option("--criterion", help=f"One of {', '.join(CRITERIA)}.")] = CRITERIA[0],
    a: Annotated[float, typer.Option("--a", min=0, max=1, help="Weight of magnitude in hybrid.")] = 0.5,
    target_flops: Annotated[
        float | None, typer.Option("--target-flops", help="Fraction of FLOPs that remains.")
    ] = None,
    target_params: Annotated[
        float | None, typer.Option("--target-params", help="Fraction of parameters to leave.")
    ] = None,
    fraction_removed: Annotated[
        float | None, typer.Option("--fraction-removed", help="Fraction of channels, neurons and heads that go.")
    ] = None,
    ranking: Annotated[str, typer.Option("--ranking", help="global; layer: the same fraction everywhere.")] = "global",
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="NAME", help="Module, parameter or group to leave whole.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Write the channel plan.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="Write the state dict.")] = None,
    json_path: _JsonOption = None,
    threads: _ThreadsOption = None,
) -> None:
    """Removes the channels, neurons and heads that matter least for good, and prints a table of every group.

    Expressiveness and hybrid look at the shipped images, at the args that the callable returns, or at noise. Groups of
    which the model's own code fixes the size are left whole.
    """
    given = [value for value in (target_flops, target_params, fraction_removed) if value is not None]
    with _failures():
        _check_writable(plan, weights, json_path)
        _set_threads(threads)
        shapes = [_parse_shape(text) for text in input_shape or []]
        if criterion not in CRITERIA or ranking not in ("global", "layer") or len(given) != 1:
            raise UsageError(
                f"give one target, a criterion of {', '.join(CRITERIA)}, and global or layer as the ranking"
            )
        if not is_model_name(model) or model.endswith(".pt2"):
            raise UsageError(f"{model!r} names no module: give package.module:callable or a shipped model")
        if "" not in sys.path:
            sys.path.insert(0, "")
        order: Ranking = "global" if ranking == "global" else "layer"
        left = tuple(ignore or ())
        wanted = Wanted(criterion, a, target_flops, target_params, fraction_removed, order, left, plan, weights)
        with _progress(model) as say:
            small, figures = shrink_named(model, shapes, wanted, say)
        typer.echo(str(small.report))
        for name, value in figures.items():
            typer.echo(f"{name.replace('_', ' ')}: {100 * value:.2f} %")
        _write_json(json_path, {"library": version("exprune_fx"), "model": model, **figures, **small.report.to_dict()})


# --- bench ------------------------------------------------------------------------------------------------------------


@app.command()
def bench(
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model; may be repeated.")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows", metavar="FILTER", help="micro, models, all, or a part of a row's name; may be repeated."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Examples in one call, for every row.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16, for every row.")
    ] = None,
    threads: _ThreadsOption = None,
    json_path: _JsonOption = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", metavar="DIR", help="Folder of trained weights, for VGG11-BN.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder of CIFAR-10 and Fashion-MNIST.")
    ] = None,
    budget: Annotated[
        float,
        typer.Option("--budget", help="Share of each neuron's energy that stopping may lose, for models with data."),
    ] = 0.01,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few calls only: checks that everything works, measures nothing.")
    ] = False,
    readable: Annotated[bool, typer.Option("--readable", hidden=True)] = False,
) -> None:
    """Times models as they are, under torch.compile in three settings, and staged, beside each other in one run.

    Compiling takes up to a minute a row and more for a whole model. The JSON is brought up to date after every row. Its
    keys say what each figure is.
    """
    with _failures():
        _check_budget(budget)
        _check_writable(json_path)
        for name in dtype or ():
            if name not in DTYPES:
                raise UsageError(f"--dtype {name!r} is none of {', '.join(DTYPES)}")
        specs = select_rows(
            rows or (),
            model or (),
            batch=batch,
            dtypes=[DTYPES[name] for name in dtype] if dtype else None,
            checkpoints=checkpoints,
            data_dir=data_dir,
            budget=budget,
        )
        settings = Settings(threads, quick, not readable, json_path)
        with _progress("machine") as say:
            run_bench(specs, settings, _console(), say)
