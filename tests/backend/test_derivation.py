"""What passes compute from tensors without values is computed again from others."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from exprune_fx.backend.derivation import Tape


def _replayed(tape: Tape, result: Tensor, *inputs: Tensor) -> Tensor:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in tape.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(values[tape.node_of(result)])
    out: Tensor = fx.GraphModule(tape.constants, graph)(*inputs)
    return out


def test_calls_on_watched_tensors_are_written_down_with_the_constants_that_they_meet() -> None:
    mode, tape = FakeTensorMode(), None
    weight, bias = mode.from_tensor(torch.ones(3, 4)), mode.from_tensor(torch.ones(3))
    tape = Tape(mode)
    tape.watch(weight, 5)
    tape.watch(bias, 2)
    lift, order = torch.randn(4, 2), torch.tensor([2, 0, 1])
    with tape, torch.no_grad():
        unwatched = lift * 2
        scaled = (weight * bias.double().view(-1, 1)).float()
        found = torch.einsum("ok,kr->or", scaled.index_select(0, order), unwatched).detach()
        largest = found.max(dim=1)[0]
    assert [Tape.place_of(node) for node in tape.graph.nodes if node.op == "placeholder"] == [5, 2]
    assert len(tape.constants) == 2
    real, shift = torch.randn(3, 4), torch.randn(3)
    expected = ((real * shift.view(-1, 1))[order] @ (lift * 2)).max(dim=1)[0]
    torch.testing.assert_close(_replayed(tape, largest, real, shift), expected)


def test_a_detached_tensor_is_the_tensor_and_a_cast_one_is_not() -> None:
    mode = FakeTensorMode()
    weight, narrow = mode.from_tensor(torch.ones(3)), mode.from_tensor(torch.ones(3, dtype=torch.bfloat16))
    tape = Tape(mode)
    tape.watch(weight, 0)
    tape.watch(narrow, 0, torch.bfloat16)
    with tape:
        same = weight.detach()
    assert tape.node_of(same) is tape.node_of(weight)
    assert tape.node_of(narrow) is not tape.node_of(weight)
    values = torch.randn(3)
    torch.testing.assert_close(_replayed(tape, narrow, values), values.bfloat16())
    other = torch.ones(2)
    assert tape.node_of(other).op == "get_attr"
    assert tape.constants["constant_0"] is other
