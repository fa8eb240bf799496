"""The Python of dialect graphs: plain where the signature is, pytrees where it is not, the check first of all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture


class Answers(nn.Module):
    """Gives the sum and the difference of its inputs, packed as it is told."""

    def __init__(self, pack: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x: Tensor, *, y: Tensor) -> Any:
        return self.pack(x + y, x - y)


X, Y = torch.arange(6.0).reshape(2, 3), torch.full((2, 3), 2.0)


@pytest.mark.parametrize(
    ("pack", "plain"),
    [
        (lambda a, b: a, True),
        (lambda a, b: (a,), True),
        (lambda a, b: (a, b), True),
        (lambda a, b: [b, a], True),
        (lambda a, b: {"sum": a, "it's": b}, True),
        (lambda a, b: {"pair": (a, b)}, False),
        (lambda a, b: (a, None), True),
        (lambda a, b: torch.return_types.topk((a, b)), False),
    ],
    ids=["leaf", "tuple of one", "tuple", "list", "dict", "nested", "none", "named"],
)
def test_results_keep_their_structure(pack: Callable[[Tensor, Tensor], Any], plain: bool) -> None:
    model = Answers(pack)
    gm = capture(model, (X,), {"y": Y})
    assert ("tree_" not in gm.code) == plain
    want, got = model(X, y=Y), gm(X, y=Y)
    assert type(got) is type(want)
    torch.testing.assert_close(got, want, rtol=0, atol=0)  # the same operations on the same numbers


def test_nested_arguments_are_flattened() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], scale: dict[str, Tensor]) -> Tensor:
            return pair[0] * scale["by"] + pair[1]

    args = ((X, Y), {"by": Y.clone()})
    gm = capture(Nested(), args)
    assert "tree_flatten_spec" in gm.code
    assert torch.equal(gm(*args), X * Y + Y)


@pytest.mark.parametrize("call", [lambda gm, *a, **k: gm(*a, **k), lambda gm, *a, **k: gm.forward(*a, **k)])
def test_the_check_comes_first(call: Callable[..., Any]) -> None:
    gm = capture(Answers(lambda a, b: a), (X,), {"y": Y})
    with pytest.raises(CaptureError, match=r"size 0 of input 'x' must be 2"):
        call(gm, X[:1], y=Y[:1])


def test_a_compiled_graph_is_guarded_by_the_compiler_alone() -> None:
    gm = capture(Answers(lambda a, b: a), (X,), {"y": Y})
    called: list[tuple[Any, ...]] = []
    gm.__dict__["input_check"] = lambda *args: called.append(args)
    compiled = torch.compile(gm, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X, y=Y), X + Y)
    assert not called
    gm(X, y=Y)
    assert len(called) == 1


class Layers(nn.Module):
    """A parameter and a buffer at the top, others under names that are numbers, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3))
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("shift", torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) * self.scale + self.shift
        return out


@pytest.fixture
def layers() -> tuple[nn.Module, fx.GraphModule]:
    torch.manual_seed(0)
    model = Layers().eval()
    return model, capture(model, (X,))


def test_tensors_are_read_without_looking_for_them(
    layers: tuple[nn.Module, fx.GraphModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, gm = layers
    want, find = model(X), nn.Module.__getattr__
    looked: list[str] = []

    def look(module: nn.Module, name: str) -> Any:
        looked.append(name)
        return find(module, name)

    monkeypatch.setattr(nn.Module, "__getattr__", look)
    assert torch.equal(gm(X), want)
    assert not looked
    assert "self.scale" in gm.code  # which stays as it is to be read
    assert "_modules" not in gm.code


def test_every_call_reads_what_is_there_then(layers: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = layers
    gm(X)
    linear = gm.get_submodule("layers.0")
    state = {name: value.double() + 1 for name, value in gm.state_dict().items()}
    gm.double().load_state_dict(state)
    model.double().load_state_dict(state, strict=False)
    assert torch.equal(gm(X.double()), model(X.double()))
    zero = {name: torch.zeros_like(value) for name, value in gm.state_dict().items()}
    assert not torch.func.functional_call(gm, zero, (X.double(),)).any()
    weight = linear.get_parameter("weight")
    del linear.weight  # and is found as any attribute then
    linear.weight = weight.detach() * 2
    assert not torch.equal(gm(X.double()), model(X.double()))
    gm.set_submodule("layers.0", model.get_submodule("layers.0"))
    assert torch.equal(gm(X.double()), model(X.double()))


def test_it_is_called_as_any_module_is(layers: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = layers
    seen: list[Tensor] = []
    handle = gm.register_forward_hook(lambda module, args, out: seen.append(out))
    gm.recompile()
    assert torch.equal(gm(X), model(X))
    assert type(gm).__call__ is nn.Module.__call__  # without fx's wrapper around it
    assert len(seen) == 1
    handle.remove()
    assert torch.equal(copy.deepcopy(gm)(X), model(X))
    assert len(seen) == 1


def test_a_compiler_reads_attributes_as_written(layers: tuple[nn.Module, fx.GraphModule]) -> None:
    _, gm = layers
    with torch.no_grad():
        want = gm(X)
        gm.forward.__globals__["_attribute_of_"] = None  # which it does not call
        compiled = torch.compile(gm, backend="eager", fullgraph=True)
        assert torch.equal(compiled(X), want)


def test_tensors_are_attributes_when_it_is_traced_again(layers: tuple[nn.Module, fx.GraphModule]) -> None:
    model, gm = layers
    traced = fx.symbolic_trace(gm)
    assert {str(n.target) for n in traced.graph.nodes if n.op == "get_attr"} >= {"scale", "shift", "layers.0.weight"}
    assert torch.equal(traced(X), model(X))


def test_tracing_it_again_records_the_operations_alone() -> None:
    gm = capture(Answers(lambda a, b: a), (X,), {"y": Y})
    traced = fx.symbolic_trace(gm)
    assert [str(n.target) for n in traced.graph.nodes] == ["x", "y", "aten.add.Tensor", "output"]


def test_a_module_made_of_the_graph_by_hand_has_no_check() -> None:
    gm = capture(Answers(lambda a, b: a), (X,), {"y": Y})
    by_hand = fx.GraphModule(gm, gm.graph)
    assert torch.equal(by_hand(X, y=Y), X + Y)
