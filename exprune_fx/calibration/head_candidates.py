"""The candidates for staging one prediction head, judged on data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from exprune_fx.calibration.head_costs import bytes_read, flops_staged
from exprune_fx.calibration.head_inputs import HeadRows, spread
from exprune_fx.errors import GuardError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.guards import Dominance
from exprune_fx.ops.dominance import Coded, Tables
from exprune_fx.ops.reference import dominance
from exprune_fx.plan import Array, HeadPlan
from exprune_fx.sites import PredictionHead
from exprune_fx.wording import fine_percent_text

JUDGED_ROWS = 128
"""Rows of input that candidates are compared on: all logits of each are computed, in float64."""
MOST_FEATURES = 1024
"""Of a head that gets a basis: multiplying with [features, features] would eat up what wider heads save, in bytes."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
SCORED_ROWS = 1024
"""Rows of input that the reach of a statistical guard is taken from."""
_LEAST_REACH = 1e-3
_RIDGE = 1e-6  # of the mean variance: features that never move have none


def decide_head(gm: fx.GraphModule, head: PredictionHead, guard: Dominance, seen: HeadRows | None) -> HeadPlan:
    """The candidate that reads the fewest bytes; without data, one stage over the codes of the weights as they are.

    Args:
        gm: the normalised graph.
        head: of it.
        guard: of the head.
        seen: rows of its input, or None.

    Raises:
        GuardError: an alpha without data.
    """
    fitting, rows = seen.halves(head.name) if seen else (None, None)
    subject = _Subject(head, *tensors_of(gm, head), fitting, rows)
    features = head.weight_shape[1]
    if subject.rows is None:
        if guard.alpha:
            raise GuardError(f"{guard} takes its reach from examples", hint="give batches, or Dominance()")
        entry = _entry(subject, guard, (features,), None, None)
        return replace(entry, reason="one stage over 8-bit codes of the weight, chosen without data")
    center = _center(subject)
    lists = sorted({(max(1, round(share * features)), features) for share in SHARES})
    several = [stages for stages in lists if stages[0] < features]
    judged = _judged(subject, guard, center, None, [(features,), *several])
    turned = _balanced_basis(subject, center) if features <= MOST_FEATURES else None
    if turned is not None:
        judged += _judged(subject, guard, center, turned, several)
    return min(judged, key=lambda entry: entry.fraction_read)


def tensors_of(gm: fx.GraphModule, head: PredictionHead) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a head's layer."""
    node = next(node for node in gm.graph.nodes if node.name == head.node)
    given = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    bias = tensor_at(gm, str(given.target)).detach() if isinstance(given, fx.Node) else None
    return tensor_at(gm, head.weight).detach(), bias


@dataclass(frozen=True, eq=False)
class _Subject:
    """A head with its tensors, the rows of input that center and basis are made of, and those that it is judged on."""

    head: PredictionHead
    weight: Tensor
    bias: Tensor | None
    fitting: Tensor | None
    rows: Tensor | None

    @property
    def bytes_dense(self) -> float:
        """Of the weight."""
        return float(self.weight.numel() * self.weight.element_size())


def _entry(
    subject: _Subject, guard: Dominance, stages: tuple[int, ...], center: Tensor | None, basis: Tensor | None
) -> HeadPlan:
    return HeadPlan(
        head=subject.head.name,
        weight_shape=subject.head.weight_shape,
        winners=subject.head.winners,
        guard=guard,
        stages=stages,
        reach=(1.0,) * len(stages),
        center=None if center is None else Array.of(center),
        basis=None if basis is None else Array.of(basis),
    )


def _center(subject: _Subject) -> Tensor:
    assert subject.fitting is not None
    finite = subject.weight[torch.isfinite(subject.weight).all(1)].double()
    return torch.stack([subject.fitting.double().mean(0), finite.mean(0)]).float()


def _balanced_basis(subject: _Subject, center: Tensor) -> Tensor | None:
    """B with ``E[x' x'^T] = mean of w' w'^T``, diagonal and falling; None where it cannot be computed.

    With ``C = L L^T`` the inputs' covariance, G the weights' second moments and ``L^T G L = U S^2 U^T``, this is
    ``B = S^(1/2) U^T L^-1``: among all bases it makes the norms of what a prefix leaves out of both equal, on average.
    """
    assert subject.fitting is not None
    finite = subject.weight[torch.isfinite(subject.weight).all(1)].double() - center[1].double()
    rows = subject.fitting.double() - center[0].double()
    eye = torch.eye(rows.shape[1], dtype=torch.float64)
    covariance, moments = rows.t() @ rows / len(rows), finite.t() @ finite / len(finite)
    covariance, moments = (each + _RIDGE * each.diagonal().mean() * eye for each in (covariance, moments))
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        return None
    squares, turn = torch.linalg.eigh(factor.t() @ moments @ factor)
    scale = squares.flip(0).clamp_min(squares.max() * 1e-12) ** 0.25
    basis: Tensor = scale[:, None] * torch.linalg.solve_triangular(factor, turn.flip(1).t(), upper=False, left=False)
    return basis.float() if bool(torch.isfinite(basis).all()) else None


def _judged(
    subject: _Subject, guard: Dominance, center: Tensor, basis: Tensor | None, lists: Sequence[tuple[int, ...]]
) -> list[HeadPlan]:
    """An entry for each list of stages, with what it does on the rows; what a basis comes to is computed once."""
    assert subject.rows is not None
    rows = spread(subject.rows, JUDGED_ROWS).to(subject.weight.dtype)
    logits = F.linear(rows, subject.weight, subject.bias)
    coded = Coded.of(subject.weight, subject.bias, center, basis)
    estimates = dominance.Estimates(dominance.turn(rows, coded.center, coded.basis, coded.slack), coded.codes)
    judged = []
    for stages in lists:
        entry, tables = _entry(subject, guard, stages, center, basis), coded.tables(stages)
        if guard.alpha:
            entry = replace(entry, reach=(_conformal_reach(subject, entry, tables),) * len(stages))
        after = dominance.stopped_after(logits, estimates, tables.numbers, stages, entry.reach, entry.winners)
        judged.append(_with_outcome(subject, entry, logits, after))
    return judged


def _with_outcome(subject: _Subject, entry: HeadPlan, logits: Tensor, after: Tensor) -> HeadPlan:
    """The entry with what came of stopping classes [rows, classes] after these stages."""
    alive = tuple(float((after > stage).double().mean()) for stage in range(len(entry.stages)))
    kept = logits.masked_fill(after < len(entry.stages), -torch.inf)
    same = kept.topk(entry.winners).values == logits.topk(entry.winners).values
    read = bytes_read(entry, subject.weight.element_size(), alive) / subject.bytes_dense
    removed = 1 - flops_staged(entry, alive) / (2 * subject.weight.numel())
    words = f"stages at {', '.join(map(str, entry.stages))} of {entry.weight_shape[1]} features"
    words += ", in a balanced basis" if entry.basis is not None and len(entry.basis.shape) == 2 else ""
    words += f": {fine_percent_text(read)} of the bytes read, {fine_percent_text(removed)} of the FLOPs removed"
    return replace(
        entry,
        alive_fraction=alive,
        agreement=float(same.all(-1).double().mean()),
        fraction_read=read,
        fraction_removed=removed,
        reason=words,
    )


def _conformal_reach(subject: _Subject, entry: HeadPlan, tables: Tables) -> float:
    """See `Dominance`: over rows that the basis was not made of; 1 where there are too few for this alpha."""
    assert subject.rows is not None
    rows = spread(subject.rows, SCORED_ROWS).to(subject.weight.dtype)
    best = F.linear(rows, subject.weight, subject.bias).float().topk(entry.winners)
    turned = dominance.turn(rows, tables.center, tables.basis, tables.slack)
    codes, numbers = tables.codes[best.indices].double(), tables.numbers[:, best.indices]
    needed = []
    for stage, seen in enumerate(entry.stages):
        sums = (codes[..., :seen] @ turned.ticks[:, :seen, None]).squeeze(-1).float()
        estimate = sums * (turned.tick * numbers[0]) + (numbers[1] + turned.common)
        left_out = numbers[2 + 2 * stage] * dominance.norm(turned.values[:, :seen])
        left_out = left_out + numbers[3 + 2 * stage] * dominance.norm(turned.values[:, seen:])
        needed.append(((best.values - estimate - turned.slack) / left_out).amax(-1))
    scores = torch.stack(needed).amax(0).sort().values
    rank = math.ceil((len(scores) + 1) * (1 - entry.guard.alpha))
    return 1.0 if rank > len(scores) else min(1.0, max(float(scores[rank - 1]), _LEAST_REACH))
