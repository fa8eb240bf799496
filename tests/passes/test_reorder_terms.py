"""ReorderTermsPass: an exact reordering, by the stated convention, of what may be reordered and nothing else."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.errors import PlanError
from exprune_fx.graph.printing import python_text
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.pipeline import normalise
from exprune_fx.symmetry import symmetries
from tests.passes.staging import ResidualNet, captured, randomised


def _graph() -> tuple[torch.fx.GraphModule, torch.Tensor]:
    gm, x = captured(randomised(ResidualNet()), 3, 8, 8)
    return normalise(gm), x


def _group_of(gm: torch.fx.GraphModule, target: str) -> str:
    return next(g.name for g in symmetries(gm) if any((m.target, m.dim) == (target, 0) for m in g.members))


def test_new_position_holds_the_old_member_and_the_function_is_unchanged() -> None:
    gm, x = _graph()
    name = _group_of(gm, "fc1.weight")
    order = (3, 0, 11, 2, 1, 4, 5, 6, 7, 8, 9, 10)
    text, before = python_text(gm), gm.get_parameter("fc1.weight").clone()
    result = ReorderTermsPass({name: order})(gm)
    assert (result.changed, result.edits) == (True, 1)
    assert torch.equal(result.graph_module.get_parameter("fc1.weight"), before[list(order)])
    assert torch.equal(result.graph_module.get_parameter("fc2.weight"), gm.get_parameter("fc2.weight")[:, list(order)])
    assert python_text(result.graph_module) == text  # the same nodes
    assert torch.equal(gm.get_parameter("fc1.weight"), before)
    # float64 sums in another order
    torch.testing.assert_close(result.graph_module(x), gm(x), rtol=1e-10, atol=1e-10)
    assert not ReorderTermsPass({name: order})(result.graph_module).changed


def test_blocks_after_a_flatten_move_with_their_channel() -> None:
    gm, x = _graph()
    name = _group_of(gm, "stem.weight")
    order = tuple(reversed(range(8)))
    result = ReorderTermsPass({name: order})(gm).graph_module
    columns = gm.get_parameter("fc1.weight").unflatten(1, (8, 16))
    assert torch.equal(result.get_parameter("fc1.weight").unflatten(1, (8, 16)), columns.flip(1))
    torch.testing.assert_close(result(x), gm(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("order", "name"),
    [
        ((0, 1), "fc1.weight"),
        ((0,) * 12, "fc1.weight"),
        (tuple(range(5)), "fc2.weight"),  # the model's output: pinned
    ],
)
def test_what_cannot_be_ordered_is_refused(order: tuple[int, ...], name: str) -> None:
    gm, _ = _graph()
    with pytest.raises(PlanError, match="cannot order group"):
        ReorderTermsPass({_group_of(gm, name): order})(gm)
    with pytest.raises(PlanError, match="no such group"):
        ReorderTermsPass({"nobody": (0, 1)})(gm)
