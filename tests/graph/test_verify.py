from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from exprune_fx.errors import VerifyError
from exprune_fx.graph import CHECKS, capture, copy_graph_module, same_size, verify
from tests.graph.models import ResidualCnn

aten = torch.ops.aten


@pytest.fixture(scope="module")
def captured() -> fx.GraphModule:
    return capture(ResidualCnn(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim.AUTO},))


def first(gm: fx.GraphModule, target: object) -> fx.Node:
    node: fx.Node = next(n for n in gm.graph.nodes if n.target is target or n.target == target)
    return node


def call_module(gm: fx.GraphModule) -> None:
    gm.add_module("extra", nn.ReLU())
    relu = first(gm, aten.relu.default)
    relu.op, relu.target = "call_module", "extra"


def plain_function(gm: fx.GraphModule) -> None:
    first(gm, aten.relu.default).target = torch.relu


def in_place(gm: fx.GraphModule) -> None:
    first(gm, aten.relu.default).target = aten.relu_.default


def no_value(gm: fx.GraphModule) -> None:
    del first(gm, aten.relu.default).meta["val"]


def no_path(gm: fx.GraphModule) -> None:
    del first(gm, aten.relu.default).meta["module_path"]


def missing_tensor(gm: fx.GraphModule) -> None:
    del gm.get_submodule("stem")._parameters["weight"]


def second_get_attr(gm: fx.GraphModule) -> None:
    node = first(gm, "stem.weight")
    with gm.graph.inserting_after(node):
        other = gm.graph.get_attr("stem.weight")
    other.meta = dict(node.meta)
    first(gm, aten.conv2d.default).replace_input_with(node, other)
    first(gm, aten.linear.default).replace_input_with(first(gm, "head.weight"), node)


def one_tensor_two_names(gm: fx.GraphModule) -> None:
    gm.get_submodule("block.conv1").weight = gm.get_parameter("block.conv2.weight")


def other_tensor_shape(gm: fx.GraphModule) -> None:
    gm.get_submodule("head").bias = nn.Parameter(torch.zeros(6))


def dead(gm: fx.GraphModule) -> None:
    node = first(gm, aten.relu.default)
    with gm.graph.inserting_after(node):
        gm.graph.call_function(aten.neg.default, (node,)).meta = dict(node.meta)


def one_output_too_many(gm: fx.GraphModule) -> None:
    output = gm.graph.output_node()
    output.args = ((output.args[0][0], output.args[0][0]),)  # type: ignore[index]


def one_input_too_many(gm: fx.GraphModule) -> None:
    node = first(gm, "x")
    with gm.graph.inserting_after(node):
        gm.graph.placeholder("y").meta = dict(node.meta)


def wrong_shape(gm: fx.GraphModule) -> None:
    node = first(gm, aten.relu.default)
    node.meta["val"] = node.meta["val"][:, :4]


def wrong_batch(gm: fx.GraphModule) -> None:
    node = first(gm, aten.relu.default)
    node.meta["val"] = node.meta["val"][1:]


def wrong_dtype(gm: fx.GraphModule) -> None:
    node = first(gm, aten.relu.default)
    node.meta["val"] = node.meta["val"].double()


def refused_arguments(gm: fx.GraphModule) -> None:
    node = first(gm, aten.linear.default)
    node.args = (node.args[0], node.args[2], node.args[1])


def use_before_definition(gm: fx.GraphModule) -> None:
    first(gm, aten.conv2d.default).append(first(gm, "stem.weight"))


BREAKS: list[tuple[str, Callable[[fx.GraphModule], None], str]] = [
    ("kinds", call_module, "call_module"),
    ("kinds", plain_function, "relu"),
    ("no-mutation", in_place, "block.relu"),
    ("metadata", no_value, "val"),
    ("metadata", no_path, "module_path"),
    ("lint", missing_tensor, "stem.weight"),
    ("tensors", second_get_attr, "stem.weight"),
    ("tensors", one_tensor_two_names, "block.conv1.weight"),
    ("tensors", other_tensor_shape, r"head.bias.*\[6\].*\[5\]"),
    ("no-dead-nodes", dead, "neg"),
    ("signature", one_output_too_many, "2 outputs"),
    ("signature", one_input_too_many, "2 placeholders"),
    ("values", wrong_shape, "block.relu"),
    ("values", wrong_batch, "block.relu"),
    ("values", wrong_dtype, "float64"),
    ("values", refused_arguments, "in module 'head'"),
    ("lint", use_before_definition, "stem_weight"),
]


def test_a_captured_graph_passes_every_check(captured: fx.GraphModule) -> None:
    verify(captured)
    assert {name for name, _, _ in BREAKS} == set(CHECKS), "every check has a graph that fails it"


@pytest.mark.filterwarnings("ignore:.*does not reference an nn.Module, nn.Parameter, or buffer:UserWarning")
@pytest.mark.parametrize(("check", "break_it", "message"), BREAKS, ids=lambda p: getattr(p, "__name__", None))
def test_each_check_finds_its_defect(
    captured: fx.GraphModule, check: str, break_it: Callable[[fx.GraphModule], None], message: str
) -> None:
    broken = copy_graph_module(captured)
    break_it(broken)
    with pytest.raises(VerifyError, match=f"check '{check}' fails after pass 'some-pass': .*{message}"):
        verify(broken, after="some-pass")
    verify(captured)  # what was done to the copy is not seen on the original


def test_what_was_verified_before_is_checked_again_when_an_argument_changes(captured: fx.GraphModule) -> None:
    verify(captured)
    broken = copy_graph_module(captured)
    mean = first(broken, aten.mean.dim)
    mean.args = (mean.args[0], [2])
    with pytest.raises(VerifyError, match=r"'values' fails: mean.*8, 6\]"):
        verify(broken)


def test_sizes_from_data_are_not_compared() -> None:
    class Nonzero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[x > 0] * 2

    verify(capture(Nonzero(), (torch.randn(5),)))


def test_same_size(captured: fx.GraphModule) -> None:
    batch = first(captured, "x").meta["val"].shape[0]
    assert same_size(batch, batch)
    assert same_size((batch + 1) * 2, 2 * batch + 2)
    assert same_size(3, 3)
    assert not same_size(batch, batch + 1)
    assert not same_size(batch, 2)
    assert not same_size(2, 3)


def test_arithmetic_on_sizes_is_in_the_dialect() -> None:
    class Doubles(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.new_ones(x.shape[0] * 2 + 1)

    gm = capture(Doubles(), (torch.randn(5),), dynamic_shapes=({0: Dim.AUTO},))
    assert operator.mul in {n.target for n in gm.graph.nodes}
    verify(gm)
