"""Batches as calls: every form that users and DataLoaders give, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture
from exprune_fx.graph.running import as_call, flat_inputs, symbol_values


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, pair: dict[str, Tensor], *, scale: Tensor) -> Tensor:
        return (x + pair["a"] - pair["b"]) * scale


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    rows = torch.export.Dim("rows")
    shapes = {"x": {0: rows}, "pair": {"a": {0: rows}, "b": {0: rows}}, "scale": {}}
    args = (torch.randn(3, 2), {"a": torch.randn(3, 2), "b": torch.randn(3, 2)})
    return capture(TwoInputs(), args, {"scale": torch.ones(2)}, dynamic_shapes=shapes)


def test_the_forms_of_a_batch() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    assert as_call((x, y)) == ((x, y), {})
    assert as_call([x, y]) == ((x, y), {})
    assert as_call(((x,), {"y": y})) == ((x,), {"y": y})
    assert as_call([[x], {"y": y}]) == ((x,), {"y": y})  # what a DataLoader makes of a pair
    with pytest.raises(CaptureError, match="a batch is a Tensor"):
        as_call(x)


@pytest.mark.parametrize("by_name", [False, True])
def test_one_value_for_each_placeholder_in_order(gm: fx.GraphModule, by_name: bool) -> None:
    x, a, b, scale = torch.zeros(5, 2), torch.ones(5, 2), torch.full((5, 2), 2.0), torch.full((2,), 3.0)
    pair = {"b": b, "a": a}  # dicts flatten in the captured order
    args, kwargs = ((), {"x": x, "pair": pair}) if by_name else ((x, pair), {})
    flat = flat_inputs(gm, args, {**kwargs, "scale": scale})
    assert [float(value.flatten()[0]) for value in flat] == [0.0, 1.0, 2.0, 3.0]
    assert list(symbol_values(gm, flat).values()) == [5]


def test_what_does_not_fit_is_refused(gm: fx.GraphModule) -> None:
    x = torch.zeros(5, 2)
    with pytest.raises(CaptureError, match="does not fit the captured signature"):
        flat_inputs(gm, (x,), {})
    with pytest.raises(CaptureError, match="another structure"):
        flat_inputs(gm, (x, x), {"scale": x})
