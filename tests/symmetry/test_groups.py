"""Groups and their elements: algebra, action, and refusal."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from exprune_fx.errors import SymmetryError
from exprune_fx.graph.capture import capture
from exprune_fx.symmetry import GroupElement, SymmetryGroup, symmetries
from tests.symmetry.probes import normal, outputs


class Attention(nn.Module):
    """Two heads of three, on tokens of five, with the value projection shared under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 8), nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("scale", torch.rand(5) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        z: torch.Tensor = self.norm((self.o(y) * self.scale).transpose(1, 2))
        return z


@pytest.fixture(scope="module")
def model() -> Attention:
    torch.manual_seed(0)
    return Attention().double().eval()


X = normal(2, 4, 5)


def test_names_sizes_and_structure(model: Attention) -> None:
    report = symmetries(capture(model, (X,)))
    found = {g.name: (g.size, g.repeats, g.indexed_by) for g in report.free}
    heads = "q.weight[0]:[2]x3"
    assert found == {heads: (2, 1, ()), "q.weight[0]:2x[3]": (3, 2, (heads,)), "v.weight[0]:2x[4]": (4, 2, (heads,))}
    assert report.named(heads).order == 2
    assert report.named("v.weight[0]:2x[4]").order == math.factorial(4) ** 2


def test_groups_come_in_graph_order_and_cover_each_axis(model: Attention) -> None:
    report = symmetries(capture(model, (X,)))
    assert [g.name for g in report][:3] == ["q.weight[0]:[2]x3", "q.weight[0]:2x[3]", "q.weight[1]"]
    assert {m.target for m in report.group_of("scale", 0).members} == {
        "o.weight", "o.bias", "scale", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip
    assert [g.name for g in report.groups_of("o.weight", 1)] == ["q.weight[0]:[2]x3", "v.weight[0]:2x[4]"]


def test_members_say_which_positions_belong_together(model: Attention) -> None:
    report = symmetries(capture(model, (X,)))
    heads = report.named("q.weight[0]:[2]x3")
    assert {m.positions for m in heads.members if m.target == "q.weight"} == {((0, 1, 2), (3, 4, 5))}
    dims = report.named("v.weight[0]:2x[4]")
    assert {m.positions for m in dims.members} == {tuple((i,) for i in range(8))}


def test_an_element_moves_member_i_to_its_image(model: Attention) -> None:
    gm = capture(model, (X,))
    group = symmetries(gm).named("v.weight[0]:2x[4]")
    images = torch.tensor([[1, 2, 3, 0], [0, 1, 2, 3]])
    group.apply_(gm, GroupElement(group.name, images))
    new, old = gm.get_parameter("v.weight"), model.v.weight
    assert torch.equal(new[[1, 2, 3, 0]], old[:4])
    assert torch.equal(new[4:], old[4:])


def test_kind_and_requires_grad_are_kept_and_shared_tensors_not_written(model: Attention) -> None:
    model.q.weight.requires_grad_(False)
    gm = capture(model, (X,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for group in symmetries(gm).free:
        group.apply_(gm, group.random_element(generator))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert isinstance(gm.get_parameter("v.weight"), nn.Parameter)
    assert gm.get_parameter("v.weight").requires_grad
    assert not gm.get_parameter("q.weight").requires_grad
    model.q.weight.requires_grad_(True)


def test_inverse_and_composition_act_as_they_should(model: Attention) -> None:
    gm = capture(model, (X,))
    group = symmetries(gm).named("q.weight[0]:2x[3]")
    generator = torch.Generator().manual_seed(3)
    g, h = group.random_element(generator), group.random_element(generator)
    both, one_by_one = copy.copy(gm), copy.copy(gm)
    group.apply_(both, g @ h)
    group.apply_(one_by_one, h)
    group.apply_(one_by_one, g)
    assert torch.equal(both.get_parameter("q.weight"), one_by_one.get_parameter("q.weight"))
    group.apply_(both, (g @ h).inverse())
    assert torch.equal(both.get_parameter("q.weight"), gm.get_parameter("q.weight"))
    assert (g @ g.inverse()).is_identity


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_elements_form_a_group(repeats: int, size: int, seed: int) -> None:
    group = SymmetryGroup("g", size, True, "", (), repeats=repeats)
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (group.random_element(generator) for _ in range(3))
    assert (a @ b) @ c == a @ (b @ c)
    assert (a @ b).inverse() == b.inverse() @ a.inverse()
    assert (a @ a.inverse()).is_identity


@pytest.mark.parametrize(("size", "repeats"), [(2, 1), (3, 1), (4, 2), (2, 3)])
def test_the_permutation_group_has_the_order(size: int, repeats: int) -> None:
    group = SymmetryGroup("g", size, True, "", (), repeats=repeats)
    assert group.permutation_group.order() == group.order == math.factorial(size) ** repeats
    assert group.permutation_group.degree == size * repeats


def test_a_large_permutation_group_is_only_generators() -> None:
    group = SymmetryGroup("g", 3000, True, "", ())
    assert len(group.permutation_group.generators) == 2


def test_a_pinned_group_refuses(model: Attention) -> None:
    gm = capture(model, (X,))
    group = symmetries(gm).group_of("q.weight", 1)
    assert group.order == 1
    element = group.random_element(torch.Generator())
    assert element.is_identity
    with pytest.raises(SymmetryError, match=r"pinned: it is axis 2 of the model's input"):
        group.apply_(gm, element)


def test_another_graph_is_refused(model: Attention) -> None:
    group = symmetries(capture(model, (X,))).free[0]
    other = capture(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)).double(), (X,))
    with pytest.raises(SymmetryError, match="another graph"):
        group.apply_(other, group.random_element(torch.Generator()))


def test_an_element_of_another_group_is_refused(model: Attention) -> None:
    gm = capture(model, (X,))
    one, other = symmetries(gm).free[:2]
    with pytest.raises(SymmetryError, match="is not one of"):
        one.apply_(gm, other.random_element(torch.Generator()))
    with pytest.raises(SymmetryError, match="do not compose"):
        one.random_element(torch.Generator()) @ other.random_element(torch.Generator())


class Tied(nn.Module):
    """A weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.fc(self.embed(x)))
        return y


def test_a_tied_weight_stays_tied() -> None:
    gm = capture(Tied().double().eval(), (torch.tensor([[1, 2]]),))
    args = (torch.tensor([[1, 2]]),)
    wanted = outputs(gm, args)
    for group in symmetries(gm).free:
        group.apply_(gm, group.random_element(torch.Generator().manual_seed(0)))
    assert torch.allclose(outputs(gm, args)[0], wanted[0], rtol=0, atol=1e-10)  # rounding of float64
    named = dict(gm.named_parameters(remove_duplicate=False))
    tied = [tensor for name, tensor in named.items() if name in ("embed.weight", "head.weight")]
    assert all(tensor is tied[0] for tensor in tied)


def test_layouts_of_values(model: Attention) -> None:
    gm = capture(model, (X,))
    report = symmetries(gm)
    scores = next(n for n in gm.graph.nodes if "scaled_dot_product" in n.name)
    assert report.group_name_of(scores, 1) == "q.weight[0]:[2]x3"
    assert report.group_name_of(scores, 3) == "v.weight[0]:2x[4]"
    assert [[f.size for f in product] for product in report.layout_of("v.weight", 0)] == [[2, 4]]
    with pytest.raises(SymmetryError, match="no axis"):
        report.layout_of(scores, 4)
    with pytest.raises(SymmetryError, match="has 2 groups"):
        report.group_of("o.weight", 1)
