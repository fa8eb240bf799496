"""`calibrate_heads`: decides on data how the prediction heads of a graph are staged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from exprune_fx.calibration.data import Batches, check_latency_batch
from exprune_fx.calibration.decide import dense_entry
from exprune_fx.calibration.head_costs import bytes_read, flops_staged
from exprune_fx.calibration.head_latency import check_kernels, inputs_of, timed_head
from exprune_fx.calibration.latency import pieces_to_time
from exprune_fx.calibration.request import check_objective
from exprune_fx.errors import CalibrationError, GuardError, PlanError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.graph.running import examples_in, placeholder_values
from exprune_fx.guards import Dominance
from exprune_fx.ops.dominance import Coded, Tables
from exprune_fx.ops.reference import dominance
from exprune_fx.pipeline import normalise, record_of
from exprune_fx.plan import Array, HeadPlan, Plan
from exprune_fx.sites import PredictionHead, find_heads, find_sites

MOST_ROWS = 4096
"""Rows of input that mean and covariance are taken from."""
JUDGED_ROWS = 128
"""Rows of input that candidates are compared on: all logits of each are computed, in float64."""
MOST_FEATURES = 1024
"""Of a head that gets a basis: multiplying with [features, features] would eat up what wider heads save, in bytes."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
SCORED_ROWS = 1024
"""Rows of input that the reach of a statistical guard is taken from."""
_LEAST_REACH = 1e-3
_RIDGE = 1e-6  # of the mean variance: features that never move have none


def calibrate_heads(
    gm: fx.GraphModule,
    batches: Batches | None = None,
    guard: Dominance | None = None,
    *,
    heads: Sequence[str] | None = None,
    plan: Plan | None = None,
    objective: str = "flops",
    latency_batch: object | None = None,
) -> Plan:
    """Decides how each prediction head (see `find_heads`) is staged: which rests on what its guard claims.

    All classes are estimated from 8-bit codes of their weights, a quarter of the bytes of float32, in one or several
    stages; a class that cannot win stops, and those that are left are computed whole, from the weights themselves. With
    data, weights are turned into the basis in which weights and inputs fall off alike (as in balanced truncation:
    Moore, IEEE TAC 26 (1), 1981), so that few numbers of each class tell most; the stages are those that read the
    fewest bytes on the examples. Without, one stage reads the codes of the weights as they are: that needs no examples
    to be sound.

    Args:
        gm: a captured graph that returns, or goes on with, ``argmax(-1)`` or ``topk(k, -1)`` of a linear layer.
        batches: re-iterable, as for ``calibrate``; None decides without data.
        guard: `Dominance()`, sound, by default.
        heads: names of heads to stage; all by default. Those that are not named stay dense.
        plan: a plan of ``calibrate`` for the same graph, whose sites and orders are kept.
        objective: "flops" stages every head that is asked for; "latency" times each, on this machine and with torch's
            present number of threads, against its dense layer as PyTorch and as Inductor runs it, and leaves dense what
            does not gain. It needs the native kernels.
        latency_batch: what "latency" times, as for ``calibrate``. Default: calibration examples.

    Returns:
        The plan with an entry for each head.

    Raises:
        GuardError: another guard, or an alpha without data.
        PlanError: the graph is staged already, has no head of a name that is asked for, or an unknown objective;
            "latency" without native kernels or without anything to time.
        CalibrationError: no batches, or a head that no example reached with finite values.
    """
    if record_of(gm) is not None:
        raise PlanError("this graph is staged already", hint="calibrate_heads(capture(model, args), batches)")
    guard = Dominance() if guard is None else guard
    if not isinstance(guard, Dominance):
        raise GuardError(f"{guard} is a guard of sites", hint="give Dominance(), or Dominance(alpha)")
    if check_objective(objective) == "latency":
        check_kernels()
        if batches is None and latency_batch is None:
            raise PlanError("there is nothing to time", hint="give batches, or a latency_batch")
    check_latency_batch(gm, latency_batch)
    normal = normalise(gm)
    found = find_heads(normal)
    unknown = sorted(set(heads or ()) - {head.name for head in found})
    if unknown:
        raise PlanError(
            f"the graph has no head {', '.join(map(repr, unknown))}",
            hint=f"its heads are {', '.join(repr(head.name) for head in found) or 'none'}; see exprune_fx.find_heads",
        )
    chosen = [head for head in found if heads is None or head.name in heads]
    seen = _Inputs.collect(normal, chosen, batches) if batches is not None and chosen else None
    entries = tuple(_decide(normal, head, guard, seen) for head in chosen)
    if objective == "latency" and chosen:
        entries = _by_the_clock(
            normal, chosen, entries, pieces_to_time(gm, () if batches is None else batches, latency_batch)
        )
    base = plan or Plan(tuple(dense_entry(site, "its sites were not calibrated") for site in find_sites(normal)))
    examples = base.examples or (seen.examples if seen else 0)
    return replace(base, heads=entries, examples=examples)


def _by_the_clock(
    normal: fx.GraphModule, heads: Sequence[PredictionHead], entries: Sequence[HeadPlan], batches: Sequence[object]
) -> tuple[HeadPlan, ...]:
    inputs = inputs_of(normal, heads, batches)
    tensors = (_tensors_of(normal, head) for head in heads)
    return tuple(
        timed_head(head, entry, *found, inputs[head.name])
        for head, entry, found in zip(heads, entries, tensors, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Inputs:
    """Rows of input of every head.

    Attributes:
        rows: by head, [n, features], float32.
        examples: how many examples they come from.
    """

    rows: dict[str, Tensor]
    examples: int

    @staticmethod
    def collect(gm: fx.GraphModule, heads: Sequence[PredictionHead], batches: Batches) -> _Inputs:
        """The first `MOST_ROWS` rows, spread over all batches."""
        kept: dict[str, list[Tensor]] = {head.name: [] for head in heads}
        nodes = {node.name: node for node in gm.graph.nodes}
        examples = 0
        iterator: Iterable[object] = batches() if callable(batches) else batches
        for batch in iterator:
            watcher = _Watcher(gm, {nodes[head.node]: kept[head.name] for head in heads})
            with torch.no_grad():
                watcher.run(*placeholder_values(gm, batch), enable_io_processing=False)
            examples += examples_in(batch)
        if not examples:
            raise CalibrationError("there are no batches to calibrate on", hint="give at least one batch")
        rows = {name: _spread(torch.cat(pieces), MOST_ROWS) for name, pieces in kept.items()}
        for name, found in rows.items():
            if not len(found):
                raise CalibrationError(f"head {name!r}: no example has finite inputs there", hint="check the data")
        return _Inputs(rows, examples)

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """Every second row, and the others; the only one for both."""
        rows = self.rows[name]
        return rows[::2], rows[1::2] if len(rows) > 1 else rows


def _spread(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, at equal distances."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps the inputs of some linear layers."""

    def __init__(self, gm: fx.GraphModule, kept: dict[fx.Node, list[Tensor]]) -> None:
        super().__init__(gm)
        self._kept = kept

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node; of a head's layer, its input is kept."""
        if n in self._kept:
            args, _ = self.fetch_args_kwargs_from_env(n)
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).float()
            self._kept[n].append(_spread(rows[torch.isfinite(rows).all(1)], MOST_ROWS))
        return super().run_node(n)


# --- one head ---------------------------------------------------------------------------------------------------------


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


def _decide(gm: fx.GraphModule, head: PredictionHead, guard: Dominance, seen: _Inputs | None) -> HeadPlan:
    fitting, rows = seen.halves(head.name) if seen else (None, None)
    subject = _Subject(head, *_tensors_of(gm, head), fitting, rows)
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


def _tensors_of(gm: fx.GraphModule, head: PredictionHead) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a head's layer."""
    node = next(node for node in gm.graph.nodes if node.name == head.node)
    given = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    bias = tensor_at(gm, str(given.target)).detach() if isinstance(given, fx.Node) else None
    return tensor_at(gm, head.weight).detach(), bias


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
    rows = _spread(subject.rows, JUDGED_ROWS).to(subject.weight.dtype)
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
    return replace(
        entry,
        alive_fraction=alive,
        agreement=float(same.all(-1).double().mean()),
        fraction_read=read,
        fraction_removed=removed,
        reason=f"{words}: {100 * read:.2g} % of the bytes read, {100 * removed:.2g} % of the FLOPs removed",
    )


def _conformal_reach(subject: _Subject, entry: HeadPlan, tables: Tables) -> float:
    """See `Dominance`: over rows that the basis was not made of; 1 where there are too few for this alpha."""
    assert subject.rows is not None
    rows = _spread(subject.rows, SCORED_ROWS).to(subject.weight.dtype)
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
