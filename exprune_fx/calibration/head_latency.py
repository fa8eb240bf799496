"""Decides prediction heads by the clock: the staged head against the dense one, on real rows of input."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exprune_fx.calibration.decide import EVERY_GAIN, pays
from exprune_fx.calibration.whole import Compile, Measure, measure_graphs
from exprune_fx.compiling import Runnable, compiled
from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.ops import native
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import HeadPlan, Plan, SiteTiming
from exprune_fx.sites import PredictionHead, find_heads
from exprune_fx.timing import Step
from exprune_fx.wording import count_text, milliseconds_text

_SETTING = "inductor_freezing"
DENSE = ("the dense layer, PyTorch", "the dense layer, Inductor")
STAGED = "the staged head"


class _Head(nn.Module):
    """One head alone; its layer has the model's own tensors."""

    def __init__(self, head: PredictionHead, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=bias is not None, device="meta")
        self.layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.layer.bias = nn.Parameter(bias, requires_grad=False)
        self._choice, self._winners = head.choice, head.winners

    def forward(self, x: Tensor) -> Any:
        """Rows of input to their winners."""
        logits = self.layer(x)
        return logits.argmax(-1) if self._choice == "argmax" else logits.topk(self._winners)


def check_kernels() -> None:
    """Refuses to time what is not there.

    Raises:
        PlanError: there are no native kernels.
    """
    if not native.available():
        raise PlanError(
            'objective "latency" is decided by timing native kernels, and there are none: EXPRUNE_KERNELS forbids '
            "them, or they could not be built (the log says why)",
            hint='use objective="flops"; EXPRUNE_KERNELS=native shows what the compiler says',
        )


def timed_head(
    head: PredictionHead,
    entry: HeadPlan,
    weight: Tensor,
    bias: Tensor | None,
    inputs: Sequence[Tensor],
    compile_graph: Compile | None = None,
    measure: Measure | None = None,
) -> HeadPlan:
    """The entry with what it took, or a dense one where the best dense form is as fast.

    The dense layer runs as PyTorch runs it, and compiled by Inductor with its parameters frozen; the staged head is
    compiled likewise.

    Args:
        head: the head.
        entry: that stages it.
        weight: [classes, features].
        bias: [classes] or None.
        inputs: [..., features], of equal shape; they take turns.
        compile_graph: `exprune_fx.compiling.compiled` by default, replaced in tests.
        measure: walks of steps to the median seconds of each key; by the clock by default, replaced in tests.
    """
    compile_graph = compile_graph or compiled
    alone = capture(_Head(head, weight, bias).eval(), (inputs[0],))
    (found,) = find_heads(normalise(alone))
    staged = transform(alone, Plan(heads=(replace(entry, head=found.name),)))
    ways = [
        Runnable(DENSE[0], alone),
        compile_graph(alone, DENSE[1], _SETTING, (inputs[0],)),
        compile_graph(staged, STAGED, _SETTING, (inputs[0],)),
    ]
    taken = (measure or measure_graphs)([[_step(way, inputs)] for way in ways])
    dense = min(DENSE, key=taken.__getitem__)
    timing = SiteTiming(
        dense_s=taken[dense],
        dense_form=dense,
        staged_s=taken[STAGED],
        staged_form=STAGED,
        examples=inputs[0].numel() // inputs[0].shape[-1],
        threads=torch.get_num_threads(),
        tried={str(name): seconds for name, seconds in taken.items()},
    )
    took = f"{milliseconds_text(timing.staged_s)} staged, {milliseconds_text(timing.dense_s)} as {dense}"
    at = f"({count_text(timing.examples, 'row')}, {count_text(timing.threads, 'thread')})"
    if pays(timing.staged_s, timing.dense_s, EVERY_GAIN):
        return replace(entry, reason=f"{entry.reason}; {took}, {timing.speedup:.2f} times as fast {at}", timing=timing)
    return HeadPlan(
        head=entry.head,
        weight_shape=entry.weight_shape,
        winners=entry.winners,
        guard=entry.guard,
        reason=f"dense: {took} {at}",
        timing=timing,
    )


def _step(way: Runnable, inputs: Sequence[Tensor]) -> Step:
    def run(x: Tensor) -> object:
        with torch.no_grad():
            return way.call(x)

    key: Hashable = way.name
    return Step(key, partial(_turn, inputs), run)


def _turn(inputs: Sequence[Tensor], index: int) -> tuple[Tensor]:
    return (inputs[index % len(inputs)],)
