"""What losing energy at each site does to the model's outputs, measured without labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from exprune_fx.calibration import ranks
from exprune_fx.calibration.data import Batches, read
from exprune_fx.calibration.frontier import Option
from exprune_fx.graph.running import as_call, examples_in
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan

_LEAST = 1e-12  # of a sensitivity: a site whose loss cannot be seen at the outputs is still not free


def output_sensitivity(
    gm: fx.GraphModule,
    options: Mapping[str, Sequence[Option]],
    probes: Mapping[str, Option],
    orders: Mapping[str, tuple[int, ...]],
    batches: Batches,
    examples: int,
) -> dict[str, float]:
    """By site, the relative squared error of the outputs for each unit of energy that is lost there.

    Each site is staged alone, by its probe: ``|y' - y|^2 / |y|^2`` over all floating-point outputs, divided by the
    share of its energy that the probe loses. Sites without a probe that loses anything get the largest of the others.

    Under ``torchrun`` each process takes its share of the sites.

    Args:
        gm: the captured graph.
        options: of every site.
        probes: the option that each site is tried with.
        orders: of the terms.
        batches: calibration data.
        examples: how many of them are used, at least.
    """
    used = list(_first(batches, examples))
    losing = [name for name, probe in probes.items() if probe.energy_lost > 0]
    with torch.no_grad():
        dense = [_outputs(gm, batch) for batch in used]
        whole = sum(_square(leaf) for leaves in dense for leaf in leaves) or 1.0
        found: dict[str, float] = {}
        for _, name in ranks.mine(losing):
            probe = probes[name]
            entries = tuple((probe if site == name else options[site][0]).entry for site in options)
            staged = transform(gm, Plan(entries, dict(orders)))
            errors = (
                _square(got - expected)
                for batch, leaves in zip(used, dense, strict=True)
                for got, expected in zip(_outputs(staged, batch), leaves, strict=True)
            )
            found[name] = max(sum(errors) / whole / probe.energy_lost, _LEAST)
    found = {name: value for part in ranks.gathered(found) for name, value in part.items()}
    worst = max(found.values(), default=1.0)
    return {name: found.get(name, worst) for name in options}


def _first(batches: Batches, examples: int) -> Iterator[object]:
    seen = 0
    for batch in read(batches):
        if seen >= examples:
            return
        seen += examples_in(batch)
        yield batch


def _outputs(model: fx.GraphModule, batch: object) -> list[Tensor]:
    args, kwargs = as_call(batch)
    leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _square(value: Tensor) -> float:
    return float(value.double().square().sum())
