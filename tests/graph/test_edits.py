from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from exprune_fx.errors import CaptureError, ExpruneError
from exprune_fx.graph import capture, copy_graph_module, edits, python_text, verify
from tests.graph.models import ResidualCnn, randomise

aten = torch.ops.aten


def captured(model: nn.Module) -> fx.GraphModule:
    return capture(model, (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim.AUTO},))


def first(gm: fx.GraphModule, target: object) -> fx.Node:
    node: fx.Node = next(n for n in gm.graph.nodes if n.target is target or n.target == target)
    return node


def test_nothing_done_to_a_copy_is_seen_on_the_original() -> None:
    model = randomise(ResidualCnn())
    gm = captured(model)
    text = python_text(gm)
    clone = copy_graph_module(gm)
    assert python_text(clone) == text
    assert clone.get_parameter("head.weight") is model.head.weight
    assert [n.meta for n in clone.graph.nodes] == [n.meta for n in gm.graph.nodes]
    clone.get_submodule("head").weight = nn.Parameter(torch.zeros(5, 8))
    clone.get_submodule("block").extra = 3  # type: ignore[assignment]
    clone.meta["mine"] = 1
    relu = first(clone, aten.relu.default)
    relu.meta["mine"] = 1
    relu.replace_all_uses_with(relu.args[0])  # type: ignore[arg-type]
    edits.remove_dead(clone)
    edits.recompile(clone)
    assert gm.get_parameter("head.weight") is model.head.weight
    assert not hasattr(gm.get_submodule("block"), "extra")
    assert "mine" not in gm.meta
    assert "mine" not in first(gm, aten.relu.default).meta
    assert python_text(gm) == text
    verify(gm)


def test_a_copy_is_called_like_the_original_and_keeps_the_input_check() -> None:
    model = randomise(ResidualCnn()).eval()
    clone = copy_graph_module(copy_graph_module(captured(model)))
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(clone(x=x), model(x), rtol=0, atol=0)
    with pytest.raises(CaptureError, match="size 1"):
        clone(torch.randn(3, 4, 8, 8))


def test_insert_call_sets_value_path_and_provenance() -> None:
    gm = captured(ResidualCnn())
    relu = first(gm, aten.relu.default)
    new = edits.insert_call(gm, aten.neg.default, (relu,), like=relu, made_by="some-pass", after=relu)
    assert (new.meta["made_by"], new.meta["made_from"], new.meta["module_path"]) == (
        "some-pass",
        relu.name,
        "block.relu",
    )
    assert new.meta["val"].shape == relu.meta["val"].shape
    assert new.meta["val"].fake_mode is relu.meta["val"].fake_mode
    edits.replace_node(gm, relu, new)
    assert list(relu.users) == [new]  # what the new node is made from stays
    edits.recompile(gm)
    verify(gm)


def test_insert_call_refuses() -> None:
    gm = captured(ResidualCnn())
    relu = first(gm, aten.relu.default)
    with pytest.raises(ExpruneError, match="exactly one"):
        edits.insert_call(gm, aten.neg.default, (relu,), like=relu, made_by="some-pass")
    with pytest.raises(ExpruneError, match=r"some-pass.*linear"):
        edits.insert_call(
            gm, aten.linear.default, (relu, first(gm, "head.weight")), like=relu, made_by="some-pass", after=relu
        )


def test_set_tensor_rebinds_and_never_writes() -> None:
    model = randomise(ResidualCnn())
    old = model.head.weight
    value, version = old.detach().clone(), old._version
    gm = copy_graph_module(captured(model))
    node = edits.set_tensor(gm, "head.weight", nn.Parameter(torch.zeros(5, 8)))
    assert node is first(gm, "head.weight")
    assert torch.equal(gm.get_parameter("head.weight"), torch.zeros(5, 8))
    assert model.head.weight is old
    assert torch.equal(old, value)
    assert old._version == version
    verify(gm)


def test_set_tensor_makes_new_names_parameters_and_buffers() -> None:
    gm = copy_graph_module(captured(ResidualCnn()))
    weight = edits.set_tensor(gm, "fresh.deep.weight", nn.Parameter(torch.ones(8)))
    table = edits.set_tensor(gm, "fresh.table", torch.ones(8))
    relu = first(gm, aten.relu.default)
    assert "fresh.deep.weight" in dict(gm.named_parameters())
    assert "fresh.table" in dict(gm.named_buffers())
    assert weight.meta["module_path"] == "fresh.deep"
    scaled = edits.insert_call(gm, aten.add.Tensor, (weight, table), like=relu, made_by="p", before=relu)
    assert list(scaled.meta["val"].shape) == [8]
    with pytest.raises(ExpruneError, match="is a module"):
        edits.set_tensor(gm, "fresh.deep", torch.ones(8))


def test_remove_dead_drops_nodes_tensors_and_modules() -> None:
    gm = copy_graph_module(captured(ResidualCnn()))
    output = gm.graph.output_node()
    output.args = ((first(gm, aten.conv2d.default),),)
    assert edits.remove_dead(gm) > 10
    assert set(gm.state_dict()) == {"stem.weight", "stem.bias"}
    assert {name for name, _ in gm.named_modules()} == {"", "stem"}
    assert edits.remove_dead(gm) == 0
    verify(edits.recompile(gm))


def test_remove_dead_forgets_constants() -> None:
    class Adds(nn.Module):
        offset: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.ones(3), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 2) + self.offset

    gm = copy_graph_module(capture(Adds(), (torch.randn(3),)))
    assert gm.meta["exprune_constants"] == {"offset"}
    assert copy_graph_module(gm).state_dict() == {}
    gm.graph.output_node().args = ((first(gm, aten.mul.Tensor),),)
    edits.remove_dead(gm)
    assert gm.meta["exprune_constants"] == frozenset()


def test_fresh_name() -> None:
    gm = captured(ResidualCnn())
    assert edits.fresh_name(gm, "head.folded") == "head.folded"
    assert edits.fresh_name(gm, "head.weight") == "head.weight_1"
    assert edits.fresh_name(gm, "other.weight") == "other.weight"
