"""What ``exprune shrink`` does: finds the model, shrinks it, writes the plan and the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

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
    Taylor,
    shrink,
)
from exprune_fx.static.folding import Constants
from exprune_fx.static.select import Ranking


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; see ``exprune_fx.shrink``.

    Attributes:
        criterion: one of `exprune_fx.cli.names.CRITERIA`.
        a: weight of magnitude in hybrid.
        target_flops: the fraction of FLOPs that may remain, or None.
        target_params: the fraction of parameters that may remain, or None.
        fraction_removed: the fraction of members that go, or None; one of the three is given.
        ranking: all members together, or the same fraction of every group.
        ignore: what is left whole.
        constants: what becomes of removed channels' constants.
        round_to: members kept are a multiple of this.
        min_kept: members that every group keeps at least.
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
    constants: Constants
    round_to: int
    min_kept: int
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
        criterion=_criterion(wanted, batches, shipped),
        target_flops=wanted.target_flops,
        target_params=wanted.target_params,
        fraction_removed=wanted.fraction_removed,
        ranking=wanted.ranking,
        ignore=wanted.ignore,
        constants=wanted.constants,
        round_to=wanted.round_to,
        min_kept=wanted.min_kept,
        fixed="keep",
    )
    if shipped:
        figures["accuracy_after"] = _accuracy(model, say)
    if wanted.plan is not None:
        small.plan.save(wanted.plan)
    if wanted.weights is not None:
        torch.save(model.state_dict(), wanted.weights)
    return small, figures


def _criterion(wanted: Wanted, batches: list[tuple[Any, ...]], shipped: bool) -> Criterion:
    if wanted.criterion == "taylor":
        return _taylor(shipped)
    expressiveness = Expressiveness(batches or Noise())
    criteria: dict[str, Criterion] = {
        "expressiveness": expressiveness,
        "magnitude": Magnitude(),
        "bn-scale": BatchNormScale(),
        "hybrid": Hybrid(wanted.a, expressiveness),
        "random": Random(),
    }
    return criteria[wanted.criterion]


def _taylor(shipped: bool) -> Criterion:
    """On the shipped calibration images with their labels."""
    if not shipped:
        raise ExpruneError("taylor needs labels, which only shipped models have here", hint="call exprune_fx.shrink")
    sample = zoo.load_sample()
    pairs = list(zip(sample.calibration_images.split(100), sample.calibration_labels.split(100), strict=True))
    return Taylor(pairs, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))


def _accuracy(model: nn.Module, say: Callable[[str], None]) -> float:
    say("testing on the shipped images")
    sample = zoo.load_sample()
    return zoo.accuracy(model, sample.test_images, sample.test_labels)
