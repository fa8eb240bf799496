"""Which rows a call of the benchmark asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exprune_fx.bench import opt_shaped
from exprune_fx.bench.heads import head_specs
from exprune_fx.bench.micro import micro_specs
from exprune_fx.bench.models import BUDGET, Folder, model_names, model_specs
from exprune_fx.bench.subject import RowSpec
from exprune_fx.errors import DataError
from exprune_fx.plan import Plan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"micro": "micro", "models": "model"}


def select_rows(
    filters: Sequence[str] = (),
    models: Sequence[str] = (),
    *,
    batch: int | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    checkpoints: Folder = None,
    data_dir: Folder = None,
    budget: float = BUDGET,
    plan: Plan | None = None,
) -> list[RowSpec]:
    """The rows, micro rows first.

    Args:
        filters: "micro", "models", "all", or parts of names; a row is taken if any of them fits. None of these and no
            model: all rows.
        models: names of models; with them alone, only these.
        batch: examples a call, for every row.
        dtypes: for every row.
        checkpoints: folder of trained weights.
        data_dir: folder of data sets.
        budget: of the calibrated guard of model rows.
        plan: of one trained model, instead.

    Raises:
        DataError: a filter or a model that names no row, or a plan for other rows than one trained model's.
    """
    known = model_names(checkpoints)
    for name in models:
        if name not in known:
            raise DataError(f"the benchmark has no model {name!r}", hint=f"use one of {', '.join(known)}")
    rows = [
        *micro_specs(dtypes, batch),
        *head_specs(checkpoints, dtypes, batch),
        *model_specs(checkpoints, data_dir, dtypes, batch, budget, plan),
    ]
    wanted = list(filters) or ([] if models else ["all"])
    for text in wanted:
        if not any(_fits(row, text) for row in rows):
            raise DataError(
                f"the benchmark has no row {text!r}",
                hint="give micro, models, all, or a part of a name: " + ", ".join(dict.fromkeys(r.name for r in rows)),
            )
    chosen = [row for row in rows if row.name in models or any(_fits(row, text) for text in wanted)]
    names = {row.name for row in chosen}
    if plan is not None and (len(names) != 1 or not names <= set(known) - {opt_shaped.NAME}):
        raise DataError(
            f"a plan is of one model, and these rows are {', '.join(sorted(names))}",
            hint=f"choose one: --model {known[0]}",
        )
    return chosen


def _fits(row: RowSpec, text: str) -> bool:
    if text in KINDS:
        return row.kind == KINDS[text]
    return text == "all" or text in row.name
