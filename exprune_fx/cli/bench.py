"""``exprune bench``: runs the rows one after another, keeps the JSON up to date, and prints the tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from exprune_fx.bench.machine import Machine, cores, measure_machine
from exprune_fx.bench.record import bench_json
from exprune_fx.bench.rows import Row
from exprune_fx.bench.running import run_subject
from exprune_fx.bench.subject import RowSpec, Say
from exprune_fx.bench.table import machine_text, sections
from exprune_fx.bench.timing import QUICK, Schedule
from exprune_fx.cli.shared import write_json
from exprune_fx.report.terminal import section_renderable


@dataclass(frozen=True)
class Settings:
    """How a run was asked for.

    Attributes:
        threads: of torch; None for all cores.
        quick: few rounds: a check that everything works, no benchmark.
        lower: time the fused operators; False times the readable form.
        json_path: rewritten after every row, so that a run that is stopped leaves what it has.
    """

    threads: int | None = None
    quick: bool = False
    lower: bool = True
    json_path: Path | None = None


def run_bench(specs: Sequence[RowSpec], settings: Settings, console: Console, say: Say) -> list[Row]:
    """Runs and prints all rows; what is done stands on standard error, one line a row.

    Raises:
        ExpruneError: a row's data are missing, or it cannot be compiled or staged.
    """
    torch.set_num_threads(settings.threads or cores())
    log = Console(stderr=True, highlight=False)
    say("machine")
    machine = measure_machine(list(dict.fromkeys(spec.dtype for spec in specs)), quick=settings.quick)
    console.print(machine_text(machine), highlight=False, soft_wrap=True)
    schedule = QUICK if settings.quick else Schedule()
    rows: list[Row] = []
    for index, spec in enumerate(specs):
        label = f"{index + 1}/{len(specs)} {spec.label}"
        row = _run_row(spec, machine, schedule, settings, _prefixed(say, label))
        rows.append(row)
        log.print(f"{label}: {row.ratio:.2f}x {row.best_dense}")
        write_json(settings.json_path, bench_json(machine, rows, _settings_json(settings, schedule)))
    for section in sections(rows):
        console.print(section_renderable(section))
    return rows


def _run_row(spec: RowSpec, machine: Machine, schedule: Schedule, settings: Settings, say: Say) -> Row:
    subject = spec.make(say)
    return run_subject(subject, machine, schedule, say, lower=settings.lower, judge=not settings.quick)


def _prefixed(say: Say, label: str) -> Say:
    return lambda text: say(f"{label}: {text}")


def _settings_json(settings: Settings, schedule: Schedule) -> dict[str, Any]:
    return {"quick": settings.quick, "lowered": settings.lower, "rounds": schedule.rounds, "slot_s": schedule.slot_s}
