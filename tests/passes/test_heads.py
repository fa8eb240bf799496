"""StageHeadsPass and LowerHeadsPass: golden text beside its input, what stays, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from exprune_fx.calibration import calibrate_heads
from exprune_fx.errors import PlanError
from exprune_fx.graph import capture
from exprune_fx.graph.printing import python_text
from exprune_fx.guards import Dominance
from exprune_fx.ops import native
from exprune_fx.passes.lower_heads import LowerHeadsPass
from exprune_fx.passes.stage_heads import StageHeadsPass
from exprune_fx.plan import HeadPlan
from exprune_fx.staging import KEPT_KEY

needs_kernels = pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")

GOLDEN = """\
def forward(
    x,  # f32[s0, 3, 4]
):
    lm_head_weight = self.lm_head.weight  # f32[20, 4]
    lm_head_bias = self.lm_head.bias  # f32[20]
    exprune_lm_head_codes = self.exprune.lm_head.codes  # i8[20, 4]
    exprune_lm_head_numbers = self.exprune.lm_head.numbers  # f32[6, 20]
    exprune_lm_head_slack = self.exprune.lm_head.slack  # f32[5]
    select = aten.select.int(x, 1, -1)  # f32[s0, 4] lm_head
    guard_dominance = exprune.guard_dominance(select, lm_head_weight, lm_head_bias, exprune_lm_head_codes, exprune_lm_head_numbers, None, None, exprune_lm_head_slack, [2, 4], [1.0, 1.0], 1)  # i8[s0, 20] lm_head
    lt = aten.lt.Scalar(guard_dominance, 2)  # b8[s0, 20] lm_head
    finish_argmax = exprune.finish_argmax(select, lm_head_weight, lm_head_bias, lt)  # i64[s0] lm_head
    return finish_argmax
"""

LOWERED = """\
    select = aten.select.int(x, 1, -1)  # f32[s0, 4] lm_head
    staged_argmax = exprune.staged_argmax(select, lm_head_weight, lm_head_bias, exprune_lm_head_codes_in_one_row, exprune_lm_head_numbers, None, None, exprune_lm_head_slack, [2, 4], [1.0, 1.0])  # i64[s0] lm_head
    return staged_argmax
"""


class Model(nn.Module):
    def __init__(self, top: int = 0) -> None:
        super().__init__()
        self.lm_head = nn.Linear(4, 20)
        self.top = top

    def forward(self, x: Tensor) -> object:
        logits = self.lm_head(x)
        return (logits.double() / 0.5).topk(self.top) if self.top else logits.select(1, -1).argmax(-1)


def captured(model: nn.Module, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    return capture(model.to(dtype).eval(), (torch.randn(2, 3, 4, dtype=dtype),), dynamic_shapes=({0: Dim.AUTO},))


ENTRY = HeadPlan("lm_head", (20, 4), 1, Dominance(), stages=(2, 4), reach=(1.0, 1.0))


def test_golden_text() -> None:
    gm = captured(Model())
    before = python_text(gm)
    result = StageHeadsPass((ENTRY,))(gm)
    assert python_text(result.graph_module) == GOLDEN
    assert (result.changed, result.edits) == (True, 1)
    assert python_text(gm) == before
    assert not StageHeadsPass((ENTRY,))(result.graph_module).changed


@needs_kernels
def test_golden_text_lowered() -> None:
    staged = StageHeadsPass((ENTRY,))(captured(Model())).graph_module
    lowered = LowerHeadsPass()(staged).graph_module
    assert python_text(lowered).endswith(LOWERED)
    assert not LowerHeadsPass()(lowered).changed
    assert not LowerHeadsPass()(captured(Model())).changed


@pytest.mark.parametrize("lower", [False, pytest.param(True, marks=needs_kernels)])
def test_what_was_done_to_all_logits_is_done_to_the_largest(lower: bool) -> None:
    model = Model(top=3)
    gm = captured(model)
    staged = StageHeadsPass((replace(ENTRY, winners=3),))(gm).graph_module
    if lower:
        staged = LowerHeadsPass()(staged).graph_module
    x = torch.randn(5, 3, 4)
    values, indices = staged(x)
    expected = model(x)
    assert isinstance(expected, torch.return_types.topk)
    assert torch.equal(indices, expected.indices)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, expected.values, rtol=1e-6, atol=1e-6)  # float32 sums of four terms


@pytest.mark.parametrize("entry", [replace(ENTRY, stages=(), reach=()), None], ids=["dense", "none"])
def test_a_head_that_is_not_planned_stays(entry: HeadPlan | None) -> None:
    gm = captured(Model())
    assert StageHeadsPass(() if entry is None else (entry,))(gm).graph_module is gm


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (replace(ENTRY, head="other"), "head 'other' is in the plan, not in the graph, whose heads are 'lm_head'"),
        (replace(ENTRY, weight_shape=(21, 4)), r"has weight \[20, 4\] and 1 winners, the plan was made for \[21, 4\]"),
        (replace(ENTRY, winners=2), "made for .* and 2"),
    ],
    ids=str,
)
def test_a_plan_of_another_model_is_refused(entry: HeadPlan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        StageHeadsPass((entry,))(captured(Model()))


@needs_kernels
def test_what_no_kernel_holds_stays_readable_and_says_why() -> None:
    staged = StageHeadsPass((ENTRY,))(captured(Model(), torch.float64)).graph_module
    lowered = LowerHeadsPass()(staged).graph_module
    (finish,) = (node for node in lowered.graph.nodes if KEPT_KEY in node.meta)
    assert finish.meta[KEPT_KEY] == "its weight is float64, which no kernel computes in"


def test_a_plan_says_what_it_cannot_hold() -> None:
    for changes, message in (
        ({"stages": (4, 2)}, "increasing"),
        ({"stages": (2, 5)}, "increasing"),
        ({"reach": (1.0,)}, "reach"),
        ({"reach": (1.0, 0.5)}, "takes the whole bound"),
        ({"guard": Dominance(0.1), "reach": (0.5, 1.5)}, "share of the bound"),
    ):
        with pytest.raises(PlanError, match=message):
            replace(ENTRY, **changes)


def test_the_readable_form_is_calibrated_and_dense_alike_in_float64() -> None:
    model = Model()
    gm = captured(model, torch.float64)
    (entry,) = calibrate_heads(gm, [(torch.randn(64, 3, 4, dtype=torch.float64),)]).heads
    staged = StageHeadsPass((entry,))(gm).graph_module
    x = torch.randn(40, 3, 4, dtype=torch.float64)
    assert torch.equal(staged(x), model(x))
