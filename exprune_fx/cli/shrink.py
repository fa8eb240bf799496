"""What ``exprune shrink`` does: finds the model, shrinks it, writes the plan and the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from exprune_fx import zoo
from exprune_fx.cli.subject import made_by
from exprune_fx.errors import ExpruneError
from exprune_fx.static import (
    BatchNormScale,
    Criterion,
    Expressiveness,
    Hybrid,
    Magnitude,
    Noise,
    Random,
    Shrunk,
    shrink,
)

CRITERIA = ("expressiveness", "magnitude", "bn-scale", "hybrid", "random")
Ranking = Literal["global", "layer"]


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; see ``exprune_fx.shrink``.

    Attributes:
        criterion: one of CRITERIA.
        a: weight of magnitude in hybrid.
        target_flops: the fraction of FLOPs that may remain, or None.
        target_params: the fraction of parameters that may remain, or None.
        fraction_removed: the fraction of members that go, or None; one of the three is given.
        ranking: all members together, or the same fraction of every group.
        ignore: what is left whole.
        plan: file for the channel plan.
        weights: file for the state dict.
    """

    criterion: str
    a: float
    target_flops: float | None
    target_params: float | None
    fraction_removed: float | None
    ranking: Ranking
    ignore: tuple[str, ...]
    plan: Path | None
    weights: Path | None


def shrink_named(
    name: str, shapes: list[tuple[int, ...]], wanted: Wanted, say: Callable[[str], None]
) -> tuple[Shrunk, dict[str, float]]:
    """Shrinks the named model, and measures what a shipped one still gets right.

    Args:
        name: ``package.module:callable``, or a shipped model.
        shapes: of float32 noise for the inputs.
        wanted: what to do.
        say: told what is being done.

    Returns:
        What ``shrink`` gives, and accuracies before and after on the shipped test images (empty for other models).

    Raises:
        ExpruneError: there is no such model, or it cannot be shrunk.
    """
    shipped = name in zoo.names()
    batches: list[tuple[Any, ...]]
    if shipped:
        model: nn.Module = zoo.load(name)
        batches = list(zoo.calibration_batches())
        args: tuple[Any, ...] = (batches[0][0][:2],)
    else:
        made, args, examples = made_by(name, tuple(torch.randn(shape) for shape in shapes))
        if not isinstance(made, nn.Module):
            raise ExpruneError(f"{name} returned an exported program", hint="return the nn.Module that it was made of")
        model, batches = made, [examples] if examples and not shapes else []
    figures = {"accuracy_before": _accuracy(model, say)} if shipped else {}
    say(f"scoring by {wanted.criterion}, and shrinking")
    small = shrink(
        model,
        args,
        criterion=_criterion(wanted, batches),
        target_flops=wanted.target_flops,
        target_params=wanted.target_params,
        fraction_removed=wanted.fraction_removed,
        ranking=wanted.ranking,
        ignore=wanted.ignore,
        fixed="keep",
    )
    if shipped:
        figures["accuracy_after"] = _accuracy(model, say)
    if wanted.plan is not None:
        small.plan.save(wanted.plan)
    if wanted.weights is not None:
        torch.save(model.state_dict(), wanted.weights)
    return small, figures


def _criterion(wanted: Wanted, batches: list[tuple[Any, ...]]) -> Criterion:
    expressiveness = Expressiveness(batches or Noise())
    criteria: dict[str, Criterion] = {
        "expressiveness": expressiveness,
        "magnitude": Magnitude(),
        "bn-scale": BatchNormScale(),
        "hybrid": Hybrid(wanted.a, expressiveness),
        "random": Random(),
    }
    return criteria[wanted.criterion]


def _accuracy(model: nn.Module, say: Callable[[str], None]) -> float:
    say("testing on the shipped images")
    sample = zoo.load_sample()
    return zoo.accuracy(model, sample.test_images, sample.test_labels)
