"""Verdicts on the summands of reductions, with their reasons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exprune_fx.errors import SymmetryError
from exprune_fx.graph.capture import capture
from exprune_fx.symmetry import Exchangeability, exchangeability, symmetries
from tests.symmetry.probes import Probe, normal

IMAGE = normal(2, 3, 6, 6)
VECTOR = normal(2, 3)


def verdicts(
    function: Callable[..., Any], args: tuple[torch.Tensor, ...], **shapes: tuple[int, ...]
) -> dict[str, Exchangeability]:
    """The verdict for every reduction, by the name of its weight."""
    gm = capture(Probe(shapes, function, {}).eval(), args)
    report = symmetries(gm)
    found = {}
    for node in gm.graph.nodes:
        if str(node.target).startswith(("aten.linear", "aten.conv1d", "aten.conv2d", "aten.conv3d")):
            found[node.args[1].target] = exchangeability(report, gm, node)
    return found


def test_raw_inputs_are_not_and_hidden_channels_are() -> None:
    found = verdicts(lambda p, x: F.conv2d(F.conv2d(x, p.a).relu(), p.b), (IMAGE,), a=(8, 3, 3, 3), b=(5, 8, 3, 3))
    assert found["a"] == Exchangeability(
        False, "no: what the terms run over is axis 1 of the model's input args_0", 3, 1, None
    )
    assert found["b"].exchangeable
    assert (found["b"].terms, found["b"].block, found["b"].group) == (8, 1, "a[0]")
    assert found["b"].reason == (
        "yes: the 8 terms are members of group a[0], drawn alike at initialisation and trained alike"
    )


def test_a_flatten_makes_blocks() -> None:
    found = verdicts(
        lambda p, x: F.linear(F.conv2d(x, p.a).relu().flatten(1), p.b), (IMAGE,), a=(8, 3, 3, 3), b=(5, 128)
    )
    assert (found["b"].exchangeable, found["b"].terms, found["b"].block) == (True, 8, 16)
    assert "blocks of 16 positions" in found["b"].reason


def test_channels_last_flatten_is_not() -> None:
    found = verdicts(
        lambda p, x: F.linear(F.conv2d(x, p.a).permute(0, 2, 3, 1).flatten(1), p.b),
        (IMAGE,),
        a=(8, 3, 3, 3),
        b=(5, 128),
    )
    assert not found["b"].exchangeable
    assert "exchangeable only within each of its positions, by group a[0]" in found["b"].reason
    assert found["b"].terms == 128


def test_a_concatenation_has_several_orbits() -> None:
    found = verdicts(
        lambda p, x: F.linear(torch.cat((F.linear(x, p.a), F.linear(x, p.b)), 1), p.c),
        (VECTOR,), a=(32, 3), b=(64, 3), c=(4, 96),
    )  # fmt: skip
    assert not found["c"].exchangeable
    assert found["c"].orbits == (32, 64)
    assert found["c"].groups == ("a[0]", "b[0]")
    assert found["c"].reason == "no: the terms come from 2 orbits of sizes 32, 64; exchangeable only within each"


def test_a_concatenation_with_the_input_names_it() -> None:
    found = verdicts(lambda p, x: F.linear(torch.cat((F.linear(x, p.a), x), 1), p.c), (VECTOR,), a=(6, 3), c=(4, 9))
    assert not found["c"].exchangeable
    assert found["c"].orbits == (6, 1, 1, 1)
    assert "model's input" in found["c"].reason


def test_heads_of_head_dims_are_one_orbit() -> None:
    def function(p: Any, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (F.linear(x, w).unflatten(-1, (2, 5)).transpose(1, 2) for w in (p.q, p.k, p.v))
        return F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), p.o)

    found = verdicts(function, (normal(2, 4, 3),), q=(10, 3), k=(10, 3), v=(10, 3), o=(4, 10))
    assert (found["o"].exchangeable, found["o"].terms, found["o"].block, found["o"].group) == (True, 10, 1, None)
    assert found["o"].groups == ("q[0]:[2]x5", "v[0]:2x[5]")


def test_told_apart_by_an_op_gives_the_op() -> None:
    found = verdicts(lambda p, x: F.linear(F.linear(x, p.a).cumsum(1), p.b), (VECTOR,), a=(6, 3), b=(4, 6))
    assert not found["b"].exchangeable
    assert "aten.cumsum" in found["b"].reason


def test_grouped_convolution_counts_terms_of_one_group() -> None:
    found = verdicts(
        lambda p, x: F.conv2d(F.conv2d(x, p.a).relu(), p.b, groups=2), (IMAGE,), a=(8, 3, 1, 1), b=(6, 4, 3, 3)
    )
    assert (found["b"].exchangeable, found["b"].terms, found["b"].group) == (True, 4, "a[0]:2x[4]")


def test_depthwise_has_one_term() -> None:
    found = verdicts(
        lambda p, x: F.conv2d(F.conv2d(x, p.a).relu(), p.b, groups=8), (IMAGE,), a=(8, 3, 1, 1), b=(8, 1, 3, 3)
    )
    assert found["b"] == Exchangeability(False, "no: there is one term only", 1, 1, None)


def test_embedding_columns_are() -> None:
    found = verdicts(lambda p, i: F.linear(F.embedding(i, p.e), p.w), (torch.tensor([[1, 2]]),), e=(7, 6), w=(4, 6))
    assert (found["w"].exchangeable, found["w"].group) == (True, "e[1]")


def test_other_nodes_are_refused() -> None:
    gm = capture(nn.Sequential(nn.Linear(3, 6), nn.ReLU()).double(), (VECTOR,))
    relu = next(n for n in gm.graph.nodes if "relu" in str(n.target))
    with pytest.raises(SymmetryError, match="no linear or convolution"):
        exchangeability(symmetries(gm), gm, relu)
