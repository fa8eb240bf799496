"""Signatures: read off a graph, written as plain data, and good for capturing the same graph again."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture, python_text
from exprune_fx.graph.signature import Signature, TensorInput, exported


class Doubled(nn.Module):
    """The second input is twice as long as the first; the third is a constant."""

    def forward(self, x: Tensor, y: dict[str, Tensor], times: int) -> Tensor:
        return (torch.cat([x, x]) + y["long"]) * times


def test_sizes_that_follow_from_others_come_back() -> None:
    rows = torch.export.Dim("rows", max=50)
    shapes = {"x": {0: rows}, "y": {"long": {0: 2 * rows}}, "times": None}
    gm = capture(Doubled(), (torch.randn(3), {"long": torch.randn(6)}, 4), dynamic_shapes=shapes)
    signature = Signature.of(gm)
    first, second, third = signature.leaves
    assert first == TensorInput((3,), "float32", "cpu", {0: (None, 50)})
    assert (second.shape, list(second.symbolic), third) == ((6,), [0], 4)
    again = Signature.from_dict(json.loads(json.dumps(signature.to_dict())))
    assert again == signature
    args, kwargs = again.example()
    assert (args[0].shape, args[1]["long"].shape, args[2], kwargs) == ((3,), (6,), 4, {})
    back = capture(Doubled(), args, kwargs, again.dynamic_shapes(args, kwargs))
    assert python_text(back) == python_text(gm)
    x, y = torch.randn(7), {"long": torch.randn(14)}
    assert torch.equal(back(x, y, 4), gm(x, y, 4))
    assert torch.equal(exported(gm).module()(x, y, 4), gm(x, y, 4))
    with pytest.raises(CaptureError, match="must be"):
        back(x, {"long": torch.randn(13)}, 4)


@pytest.mark.parametrize("data", [{}, {"tree": "[]", "leaves": []}, {"tree": 3, "leaves": [{"dtype": "float33"}]}])
def test_what_is_no_signature(data: dict[str, object]) -> None:
    with pytest.raises(CaptureError, match="cannot be read"):
        Signature.from_dict(data)
