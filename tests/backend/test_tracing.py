"""Dynamo's graph and the captured one are the same to whoever looks for sites and symmetries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.backend.tracing import State, Traced, trace
from exprune_fx.graph import verify
from exprune_fx.pipeline import normalise
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries
from tests.backend.models import Blocks, SmallCnn, captured, images, randomised, tokens


def _traced(function: Any, *args: Any, **compile_options: Any) -> Traced:
    found: list[Traced] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(trace(gm, inputs))
        return gm.forward

    compiled: Any = torch.compile(function, backend=backend, **compile_options)
    with torch.no_grad():
        compiled(*args)
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(("kind", "data"), [(SmallCnn, images), (Blocks, lambda n: tokens(n, 5))])
@pytest.mark.parametrize("called", ["model", "method", "function"])
def test_sites_and_symmetries_are_those_of_the_captured_model(kind: type[nn.Module], data: Any, called: str) -> None:
    model, x = randomised(kind()), data(4)
    function = {"model": model, "method": model.forward, "function": lambda x: model(x) + 0}[called]
    traced = _traced(function, x)
    verify(traced.gm)
    assert set(traced.states) == set(captured(model, x).state_dict())
    ours, theirs = captured(model, x), captured(model, x)
    for name, value in ours.state_dict().items():
        assert traced.gm.state_dict()[name].shape == value.shape
    dense = normalise(theirs)
    expected = [(s.name, s.weight_shape, s.kind, s.activation, s.terms, s.exchangeable) for s in find_sites(dense)]
    # Values are needed to fold; sites are found without.
    found = [(s.name, s.weight_shape, s.kind, s.activation, s.terms, s.exchangeable) for s in find_sites(traced.gm)]
    assert found == expected
    assert {(g.size, g.free) for g in symmetries(traced.gm)} == {(g.size, g.free) for g in symmetries(theirs)}


class Held(nn.Module):
    """A parameter that is read by itself, a buffer that is written to, one that is not, and a constant."""

    shift: torch.Tensor
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.register_buffer("shift", torch.arange(6.0))
        self.register_buffer("count", torch.zeros(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        out: torch.Tensor = (self.inner(x).relu_() * self.scale + self.shift) * torch.tensor([1.0, 2, 3, 4, 5, 6])
        return out


def test_parameters_are_attributes_and_what_is_written_to_is_an_input() -> None:
    traced = _traced(Held().eval(), tokens(2, 3))
    verify(traced.gm)
    assert set(traced.states) == {"inner.weight", "inner.bias", "scale", "shift"}
    assert traced.gm.meta["exprune_constants"] >= {"shift"}
    assert len(traced.inputs) == 2
    assert (traced.outputs, len(traced.written)) == (2, 1)  # Dynamo gives the buffer back, to bind it again
    assert not any(symmetry.free for symmetry in symmetries(traced.gm))


def test_sizes_stay_symbolic() -> None:
    traced = _traced(randomised(Blocks()), tokens(4, 5), dynamic=True)
    (x,) = [
        node.meta["val"]
        for node in traced.gm.graph.nodes
        if node.op == "placeholder" and node.users and isinstance(node.meta["val"], torch.Tensor)
    ]
    assert all(isinstance(size, torch.SymInt) for size in x.shape[:2])


def test_the_places_of_parameters_are_those_of_dynamos_inputs() -> None:
    model = randomised(Blocks(count=1))
    traced = _traced(model, tokens(2, 3))
    places = sorted([state.place for state in traced.states.values()] + list(traced.inputs))
    assert places == list(range(len(places)))
    assert traced.states["layers.0.fc1.weight"] == State(traced.states["layers.0.fc1.weight"].place)
