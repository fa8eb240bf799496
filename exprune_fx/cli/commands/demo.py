"""``exprune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exprune_fx.cli.shared import (
    JsonOption,
    ModelsOption,
    ThreadsOption,
    check_budget,
    check_writable,
    failures,
    output_console,
    progress,
    set_threads,
    write_json,
)


def demo(
    model: ModelsOption = None,
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
    json_path: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Stages the shipped models, and prints accuracy and FLOPs, dense and staged.

    Weights and images ship with the library: nothing is fetched. No fine-tuning: the models' weights are used as they
    are. In the JSON, flops_dense, flops_staged (without the tests) and flops_overhead (the tests) are sums over all
    test images, flops_total = flops_staged + flops_overhead, and the _per_example keys are the same for one image.
    """
    with failures():
        check_budget(budget)
        check_writable(json_path)
        set_threads(threads)
        from exprune_fx.cli import demo as demonstration
        from exprune_fx.cli.demo_report import demo_json, print_data, print_model

        names = demonstration.check_names(model)
        console = output_console()
        data = demonstration.load_data(data_dir)
        print_data(console, data, budget)
        candidates = demonstration.all_candidates() if curves else demonstration.few_candidates()
        results = []
        for name in names:
            with progress(name) as say:
                results.append(demonstration.run_model(name, data, budget, candidates, say))
            print_model(console, results[-1])
        write_json(json_path, demo_json(results, data, budget))
