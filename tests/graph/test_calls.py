"""How a captured graph is called: structures, constants, and the sizes for which it is valid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture, verify
from tests.graph.models import Guarded, Nested, Pair, randomise

AUTO = Dim.AUTO


def test_nested_inputs_outputs_shared_weights_and_constants() -> None:
    model = randomise(Nested())
    args = ([torch.randn(3, 4), torch.randn(3, 4)],)
    kwargs = {"extra": {"z": torch.randn(3, 4)}, "power": 2, "flag": None}
    shapes = {"items": [{0: AUTO}, {0: AUTO}], "extra": {"z": {0: AUTO}}, "power": None, "flag": None}
    gm = capture(model, args, kwargs, shapes)
    verify(gm)
    new_args = ([torch.randn(6, 4), torch.randn(6, 4)],)
    new_kwargs = {"extra": {"z": torch.randn(6, 4)}, "power": 2, "flag": None}
    expected, got = model(*new_args, **new_kwargs), gm(*new_args, **new_kwargs)
    assert list(got) == list(expected)
    assert (got["n"], got["none"], got["text"], got["size"], got["pair"].second) == (3, None, "hi", 6, 7)
    assert type(got["pair"]) is Pair
    torch.testing.assert_close(got["all"][1][0], expected["all"][1][0], rtol=0, atol=0)
    names = [n.target for n in gm.graph.nodes if n.op == "get_attr"]
    assert len(names) == len(set(names))
    assert "b.weight" not in names
    assert gm.meta["exprune_aliases"] == {"b.weight": "a.weight"}
    constants = gm.meta["exprune_constants"]
    assert {"hidden", "constant"} < constants
    assert len(constants) == 3  # and the tensor made in forward
    assert constants.isdisjoint({"scale", "a.weight", "a.bias", "b.bias"})
    assert set(gm.state_dict()) == {"a.weight", "a.bias", "b.bias", "scale"}
    assert gm.get_buffer("scale") is model.scale


def test_other_baked_in_value_is_refused() -> None:
    gm = capture(Nested(), ([torch.randn(3, 4), torch.randn(3, 4)],), {"extra": {"z": torch.randn(3, 4)}, "power": 2})
    inputs = [torch.randn(3, 4), torch.randn(3, 4)]
    with pytest.raises(CaptureError, match="'power' was captured as the constant 2"):
        gm(inputs, extra={"z": torch.randn(3, 4)}, power=3)


def test_other_structure_is_refused() -> None:
    gm = capture(Nested(), ([torch.randn(3, 4), torch.randn(3, 4)],), {"extra": {"z": torch.randn(3, 4)}, "power": 2})
    with pytest.raises(CaptureError, match="another structure"):
        gm([torch.randn(3, 4)], extra={"z": torch.randn(3, 4)}, power=2)


def test_sizes_for_which_the_graph_is_not_valid_are_refused() -> None:
    fixed = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match=r"size 0 of input 'input' must be 2.*\[3, 4\]"):
        fixed(torch.randn(3, 4))
    gm = capture(Guarded(), (torch.randn(4, 2), torch.randn(4, 2)), dynamic_shapes=({0: AUTO}, {0: AUTO}))
    x = torch.randn(6, 2)
    torch.testing.assert_close(gm(x, x.clone()), 2 * x)
    with pytest.raises(CaptureError, match="must be 6"):
        gm(x, torch.randn(4, 2))
    with pytest.raises(CaptureError, match="valid only when"):
        gm(torch.randn(5, 2), torch.randn(5, 2))


def test_a_refused_shape_stays_refused_between_accepted_ones() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    for _ in range(2):
        gm(torch.randn(2, 4))
        with pytest.raises(CaptureError):
            gm(torch.randn(3, 4))


def test_a_call_that_does_not_fit_the_signature_is_refused() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'input'"):
        gm()
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        gm(torch.randn(2, 4), other=1)


def test_range_of_a_named_dimension_is_kept() -> None:
    gm = capture(nn.Linear(4, 3), (torch.randn(4, 4),), dynamic_shapes=({0: Dim("batch", min=3, max=6)},))
    assert gm(torch.randn(3, 4)).shape == (3, 3)
    with pytest.raises(CaptureError, match="between 3 and 6"):
        gm(torch.randn(7, 4))


@pytest.mark.parametrize(
    "lie",
    [
        lambda x: torch.cat([x, x], 0)[::2],
        lambda x: torch.cat([x, x], 1)[:, ::2],
        lambda x: x[:1].expand(4, 6),
        lambda x: x.t().contiguous().t(),
    ],
    ids=["every other row", "every other column", "one row repeated", "transposed"],
)
def test_how_an_example_lies_in_memory_binds_no_call(lie: Callable[[Tensor], Tensor]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    gm = capture(model, (lie(x).requires_grad_(),), dynamic_shapes=({0: Dim.DYNAMIC},))
    for given in (x, lie(x), torch.cat([x, x, x])):
        torch.testing.assert_close(gm(given), model(given))
    kept = lie(x)
    assert capture(model, (kept,))(kept).shape == (4, 2)
    assert kept.stride() == lie(x).stride()
    with pytest.raises(CaptureError, match="size 1"):
        gm(torch.randn(4, 5))
