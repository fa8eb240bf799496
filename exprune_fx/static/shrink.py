"""`shrink`: removes members of free groups for good, from the user's module in place or from a captured graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import fx, nn

from exprune_fx.errors import ShrinkError
from exprune_fx.graph.edits import CONSTANTS_KEY
from exprune_fx.static.criteria import Criterion, Expressiveness
from exprune_fx.static.criteria.expressiveness import Noise
from exprune_fx.static.folding import Constants
from exprune_fx.static.loop import Loop, Request, Schedule, Shrunk
from exprune_fx.static.select import Limits, Ranking
from exprune_fx.static.subject import GraphSubject, ModuleSubject, Subject


def shrink(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    criterion: Criterion | None = None,
    target_flops: float | None = None,
    target_params: float | None = None,
    fraction_removed: float | None = None,
    ranking: Ranking = "global",
    normalise: bool = True,
    steps: int = 1,
    schedule: Schedule = lambda progress: progress,
    finetune: Callable[[nn.Module, int], object] | None = None,
    round_to: int = 1,
    min_kept: int = 1,
    ratios: Mapping[str, float] | None = None,
    ignore: Iterable[str] = (),
    constants: Constants = "exact",
    fixed: Literal["raise", "keep"] = "raise",
    dynamic_shapes: Any = None,
) -> Shrunk:
    """Removes the members of symmetry groups that matter least: channels, neurons, heads.

    What is tied goes together: groups come from `exprune_fx.symmetries`. Inputs and outputs are tied to the outside, so
    they keep their sizes; a classifier's classes stay. A removed member's producing weights count as zero; its biases
    and shifts stay, and what they then give goes into the biases of what reads it (see `constants`). Normalisations
    over members (layer norm, group norm) take what is left. Attention keeps the scale of its whole head dim: where
    torch takes it from the head dim, queries and keys are scaled to make up for it.

    A module is changed in place, all at once, after a copy has run and given what the smaller graph gives; on any error
    it is untouched, bit for bit. Its parameters are new objects: make optimizers afterwards. A captured graph is left
    as it is, and a new one returned.

    Args:
        model: the module to shrink, or a graph from `exprune_fx.capture`.
        args: example inputs, as for `capture`; not needed for a graph.
        kwargs: example keyword inputs.
        criterion: scores the members; by default `Expressiveness` on 64 inputs of noise.
        target_flops: the fraction of the dense FLOPs that may remain; exactly one target is given.
        target_params: the fraction of the dense parameters that may remain.
        fraction_removed: the fraction of members that go.
        ranking: "global" ranks all members together; "layer" takes the same fraction of every group.
        normalise: scores count as multiples of their group's mean.
        steps: rounds of removal; each scores anew what is left.
        schedule: from progress (0, 1] of the rounds to the share of the whole removal that is done by then.
        finetune: called as `finetune(model, round)` after every round.
        round_to: members kept are a multiple of this.
        min_kept: members that every group keeps at least.
        ratios: fractions removed from groups the names of which start with the keys; they leave the ranking.
        ignore: module paths, parameter names or group names; a group that cuts any of their tensors is left whole.
        constants: "exact" folds removed channels' constants where that is exact, and counts them as zero elsewhere
            (zero-padded convolutions, normalisations over channels); "mean" folds their mean over the positions before
            zero-padded convolutions, too; "drop" counts them as zero.
        fixed: what to do about groups that the model's own code fixes the size of: "raise", or "keep" them whole.
        dynamic_shapes: as for `capture`; by default any number of examples, so that data may come in other batches.

    Raises:
        ShrinkError: the target cannot be met, a group cannot be removed, or the model's code has constant sizes.
        CaptureError: the model cannot be captured.
        CalibrationError: the criterion's data are unusable.
    """
    metric, remaining = _target(target_flops, target_params, fraction_removed)
    ratios = dict(ratios or {})
    _check_numbers(steps, round_to, min_kept, ratios)
    request = Request(
        criterion if criterion is not None else Expressiveness(Noise()),
        metric, remaining, ranking, normalise, Limits(min_kept, round_to), ratios, tuple(ignore), constants, fixed,
        steps, schedule, finetune,
    )  # fmt: skip
    if not isinstance(model, nn.Module):
        raise ShrinkError(
            f"cannot shrink a {type(model).__name__}", hint="give an nn.Module, or a graph that exprune_fx.capture made"
        )
    call = (args, dict(kwargs or {}))
    is_graph = isinstance(model, fx.GraphModule) and CONSTANTS_KEY in model.meta
    subject: Subject = GraphSubject(model) if is_graph else ModuleSubject(model, call, dynamic_shapes)  # type: ignore[arg-type]
    with subject.restored_on_error(trained=finetune is not None):
        return Loop(subject, request).run()


def _target(
    flops: float | None, params: float | None, members: float | None
) -> tuple[Literal["flops", "params", "members"], float]:
    given = [name for name, value in (("flops", flops), ("params", params), ("members", members)) if value is not None]
    if len(given) != 1:
        raise ShrinkError(
            f"{len(given)} targets are given", hint="give one of target_flops, target_params, fraction_removed"
        )
    value = flops if flops is not None else params if params is not None else members
    assert value is not None
    low, high = (0.0, 1.0)
    if not low <= value <= high or (value == 1.0 and given == ["members"]):
        raise ShrinkError(
            f"a target is {value}",
            hint="targets are fractions: target_flops=0.5 leaves half, fraction_removed=0.1 takes a tenth",
        )
    return given[0], 1 - value if given == ["members"] else value  # type: ignore[return-value]


def _check_numbers(steps: int, round_to: int, min_kept: int, ratios: Mapping[str, float]) -> None:
    for name, value in (("steps", steps), ("round_to", round_to), ("min_kept", min_kept)):
        if value < 1:
            raise ShrinkError(f"{name} is {value}", hint="give a whole number from 1")
    for key, fraction in ratios.items():
        if not 0 <= fraction < 1:
            raise ShrinkError(f"ratios[{key!r}] is {fraction}", hint="give a fraction from 0 to below 1")
