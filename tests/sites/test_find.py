"""find_sites: each pattern with its fields, and beside it the near misses that must not match."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exprune_fx.graph import capture
from exprune_fx.pipeline import normalise
from exprune_fx.sites import ConvGeometry, GatedProjection, Site, find_sites


class Model(nn.Module):
    """A few layers, and a forward given as a function of them and of the input."""

    def __init__(self, forward: Forward, x: Tensor) -> None:
        super().__init__()
        self.function = forward
        if x.dim() == 2:
            self.fc, self.up, self.narrow = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 1)
            self.out = nn.Linear(8, 6)
            self.embed = nn.Parameter(torch.randn(3, 8))
        else:
            self.conv, self.small = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
            self.spread = nn.ConvTranspose2d(4, 6, 3)
            self.bn, self.batch_stats = nn.BatchNorm2d(6), nn.BatchNorm2d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


Forward = Callable[[Any, Tensor], Any]
ROWS, IMAGE = torch.randn(3, 6), torch.randn(2, 4, 5, 5)


class Bundle(nn.Module):
    """Many small models on one input, captured at once: one by one would take a minute."""

    def __init__(self, forwards: Iterable[Forward], x: Tensor) -> None:
        super().__init__()
        self.cases = nn.ModuleList(Model(forward, x) for forward in forwards)

    def forward(self, x: Tensor) -> list[Any]:
        return [case(x) for case in self.cases]


@functools.cache
def _bundle(table: str) -> tuple[fx.GraphModule, tuple[Site, ...]]:
    forwards, x = TABLES[table]
    gm = capture(Bundle(forwards.values(), x).eval(), (x,))
    return gm, find_sites(gm)


def sites_in(table: str, case: str) -> tuple[Site, ...]:
    """The sites of one case; what a case calls by itself, with no layer, has the case's own path."""
    prefix = f"cases.{list(TABLES[table][0]).index(case)}"
    return tuple(site for site in _bundle(table)[1] if site.name == prefix or site.name.startswith(prefix + "."))


def graph_of(forward: Forward, x: Tensor = ROWS) -> fx.GraphModule:
    return capture(Model(forward, x).eval(), (x,))


def one_site(forward: Forward, x: Tensor = ROWS) -> Site:
    (site,) = find_sites(graph_of(forward, x))
    return site


# --- activations ------------------------------------------------------------------------------------------------------


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "relu": (F.relu, "relu"),
    "relu in place": (nn.ReLU(inplace=True), "relu"),
    "clamp min": (lambda z: z.clamp(min=0), "relu"),
    "clamp one bound": (lambda z: torch.clamp(z, 0), "relu"),
    "clamp_min": (lambda z: torch.clamp_min(z, 0.0), "relu"),
    "relu6": (F.relu6, "relu6"),
    "relu6 in place": (nn.ReLU6(inplace=True), "relu6"),
    "hardtanh 0 6": (lambda z: F.hardtanh(z, 0, 6), "relu6"),
    "clamp 0 6": (lambda z: z.clamp(0, 6), "relu6"),
    "clamp by name": (lambda z: z.clamp(min=0.0, max=6.0), "relu6"),
    "relu to 2": (lambda z: F.relu(z) ** 2, "relu_squared"),
    "relu squared": (lambda z: F.relu(z).square(), "relu_squared"),
    "relu by itself": (lambda z: (r := F.relu(z)) * r, "relu_squared"),
    "relu to 3": (lambda z: F.relu(z) ** 3, "relu"),
    "relu squared and read": (lambda z: (r := F.relu(z)) * r + r, "relu"),
    "relu6 squared": (lambda z: F.relu6(z) ** 2, "relu6"),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "softplus": F.softplus,
    "hardtanh": F.hardtanh,
    "abs": torch.abs,
    "square": torch.square,
    "hardtanh 0 5": lambda z: F.hardtanh(z, 0, 5),
    "threshold": lambda z: F.threshold(z, 0.1, 0.0),
    "clamp -1 6": lambda z: z.clamp(-1, 6),
    "clamp 0 5": lambda z: z.clamp(0, 5),
    "clamp max 6": lambda z: z.clamp(max=6),
    "clamp max 0": lambda z: z.clamp(max=0),
    "clamp 0.1 6": lambda z: z.clamp(0.1, 6),
    "relu of the negative": lambda z: -F.relu(-z),
}


def _then(activation: Callable[[Tensor], Tensor]) -> Forward:
    return lambda m, x: m.out(activation(m.fc(x)))


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_activations(case: str) -> None:
    (site,) = sites_in("activations", case)
    assert site.activation == ACTIVATIONS[case][1]
    assert site.name.endswith(".fc")
    assert site.obstacle == ""


@pytest.mark.parametrize("case", OTHERS)
def test_other_activations_are_none(case: str) -> None:
    assert sites_in("others", case) == ()


# --- the way back to the reduction ------------------------------------------------------------------------------------


def test_a_linear_site_has_the_right_fields() -> None:
    gm = graph_of(lambda m, x: m.out(F.relu(m.fc(x))))
    (site,) = find_sites(gm)
    nodes = {node.name: node for node in gm.graph.nodes}
    assert nodes[site.node].target is torch.ops.aten.linear.default
    assert nodes[site.activation_node].target is torch.ops.aten.relu.default
    assert (site.kind, site.weight, site.weight_shape) == ("linear", "fc.weight", (8, 6))
    assert (site.terms, site.block, site.geometry, site.chain, site.residual) == (6, 1, None, (), None)
    assert (site.out_features, site.elements, site.elements_per_term, site.spatial_dims) == (8, 6, 1, 0)
    assert (site.gated, site.obstacle, site.input_nonnegative) == (None, "", False)
    assert not site.exchangeable, "the terms run over the model's input"
    assert site.input_group is None
    assert site.output_group == "fc.weight[0]"


def test_an_inner_site_is_exchangeable_and_knows_its_input() -> None:
    first, second = find_sites(graph_of(lambda m, x: F.relu(m.out(F.relu(m.fc(x))))))
    assert not first.exchangeable
    assert second.exchangeable
    assert second.input_nonnegative
    assert second.input_group == first.output_group
    assert second.reason
    assert first.reason != second.reason


def test_blocks_after_a_flatten() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(5 * 16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(F.relu(self.conv(x)).flatten(1)))

    site = find_sites(capture(Flat().eval(), (torch.randn(2, 3, 4, 4),)))[1]
    assert (site.terms, site.block, site.elements, site.elements_per_term) == (5, 16, 80, 16)
    assert site.exchangeable


def test_batch_norm_and_residual_are_walked_through() -> None:
    gm = graph_of(lambda m, x: F.relu(m.bn(m.conv(x)) + m.small(x)), IMAGE)
    (site,) = find_sites(gm)
    nodes = {node.name: node for node in gm.graph.nodes}
    steps = [nodes[name].target for name in site.chain]
    assert steps == [torch.ops.aten.batch_norm.default, torch.ops.aten.add.Tensor]
    assert site.name == "conv"
    assert site.residual == next(
        n.name for n in gm.graph.nodes if n.meta.get("module_path") == "small" and n.op == "call_function"
    )
    assert "batch norm is not folded" in site.obstacle


def test_a_norm_over_another_axis_than_the_outputs_says_so() -> None:
    """[N, T, out] under BatchNorm1d: the norm is over T, and no weight of the linear layer can take it up."""

    class OverTime(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            normed: Tensor = self.norm(self.fc(x))
            return normed.relu()

    (site,) = find_sites(normalise(capture(OverTime().eval(), (torch.randn(2, 5, 6),))))
    assert "over another axis than its outputs" in site.obstacle


@pytest.mark.parametrize("swap", [False, True])
def test_of_two_convolutions_the_larger_is_the_site(swap: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.conv(x), m.small(x)
        return F.relu(b + a if swap else a + b)

    site = one_site(forward, IMAGE)
    assert site.name == "conv"
    assert site.obstacle == ""
    assert site.residual is not None


def test_a_residual_may_be_read_elsewhere() -> None:
    site = one_site(lambda m, x: (h := m.small(x)) + F.relu(h + m.conv(x)), IMAGE)
    assert site.name == "conv"


LINEAR_MISSES: dict[str, Forward] = {
    "pre-activation used twice": lambda m, x: F.relu(z := m.fc(x)) + z,
    "pre-activation is an output": lambda m, x: (F.relu(z := m.fc(x)), z),
    "two additions": lambda m, x: F.relu(m.fc(x) + m.embed + m.embed),
    "doubled": lambda m, x: F.relu((z := m.fc(x)) + z),
    "scaled": lambda m, x: F.relu(2 * m.fc(x)),
    "negated": lambda m, x: F.relu(-m.fc(x)),
    "scalar added": lambda m, x: F.relu(m.fc(x) + 1.0),
    "alpha": lambda m, x: F.relu(torch.add(m.embed, m.fc(x), alpha=2)),
    "subtracted": lambda m, x: F.relu(m.embed - m.fc(x)),
    "row added to all": lambda m, x: F.relu(m.fc(x) + m.embed[0]),
    "reduction broadcast": lambda m, x: F.relu(m.narrow(x) + m.embed),
    "promoted": lambda m, x: F.relu(m.fc(x) + m.embed.double()),
    "cast": lambda m, x: F.relu(m.fc(x).double()),
    "transposed": lambda m, x: F.relu(m.fc(x).T),
    "weight computed": lambda m, x: F.relu(F.linear(x, m.fc.weight * 2)),
    "matmul": lambda m, x: F.relu(x @ m.fc.weight.T),
    "layer norm": lambda m, x: F.relu(F.layer_norm(m.fc(x), (8,))),
    "concatenation": lambda m, x: F.relu(torch.cat([m.fc(x), m.up(x)])),
    "before": lambda m, x: m.fc(F.relu(x)),
}


@pytest.mark.parametrize("case", LINEAR_MISSES)
def test_near_misses_of_linear_sites(case: str) -> None:
    assert sites_in("linear misses", case) == ()


CONV_MISSES: dict[str, Forward] = {
    "statistics of the batch": lambda m, x: F.relu(m.batch_stats(m.conv(x))),
    "before batch norm used twice": lambda m, x: F.relu(m.bn(z := m.conv(x))) + z,
    "added mean": lambda m, x: F.relu((z := m.bn(m.conv(x))) + z.mean()),
    "broadcast channel shift": lambda m, x: F.relu(m.conv(x) + m.conv.bias.reshape(-1, 1, 1)),
    "mean": lambda m, x: F.relu(m.conv(x).mean((2, 3), keepdim=True)),
    "pooled": lambda m, x: F.relu(F.max_pool2d(m.conv(x), 2)),
    "transposed convolution": lambda m, x: F.relu(m.spread(x)),
}


@pytest.mark.parametrize("case", CONV_MISSES)
def test_near_misses_of_convolution_sites(case: str) -> None:
    assert sites_in("conv misses", case) == ()


# --- convolutions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(4, 6, 3), (9,), ConvGeometry((1,), (0,), (1,), 1)),
        (nn.Conv1d(4, 6, 3, 2, 1, 2, 2), (9,), ConvGeometry((2,), (1,), (2,), 2)),
        (nn.Conv2d(4, 6, (3, 1), (2, 1), (1, 0), (1, 2)), (7, 6), ConvGeometry((2, 1), (1, 0), (1, 2), 1)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (7, 6), ConvGeometry((1, 1), (2, 2), (2, 2), 1)),
        (nn.Conv2d(4, 6, (5, 3), padding="same"), (7, 6), ConvGeometry((1, 1), (2, 1), (1, 1), 1)),
        (nn.Conv2d(4, 6, 2, padding="valid", stride=2), (7, 6), ConvGeometry((2, 2), (0, 0), (1, 1), 1)),
        (nn.Conv3d(4, 6, 2, groups=2, bias=False), (3, 4, 3), ConvGeometry((1,) * 3, (0,) * 3, (1,) * 3, 2)),
    ],
)
def test_geometry(layer: nn.Module, shape: tuple[int, ...], expected: ConvGeometry) -> None:
    gm = capture(nn.Sequential(layer, nn.ReLU()).eval(), (torch.randn(2, 4, *shape),))
    (site,) = find_sites(gm)
    assert site.geometry == expected
    assert site.kind == f"conv{len(shape)}d"
    assert site.obstacle == ""
    assert site.terms == 4 // expected.groups
    assert site.spatial_dims == len(shape)
    assert site.elements_per_term * site.terms == site.elements


@pytest.mark.parametrize(
    ("layer", "x", "obstacle"),
    [
        (nn.Conv2d(4, 6, 2, padding="same"), (2, 4, 5, 5), "pads one side more"),
        (nn.Conv2d(4, 6, (3, 4), padding="same"), (2, 4, 5, 5), "pads one side more"),
        (nn.Conv2d(4, 6, 3), (4, 5, 5), "no batch dimension"),
        (nn.Conv1d(4, 6, 3), (4, 5), "no batch dimension"),
        (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), "one term only"),
        (nn.Conv2d(1, 8, 3), (2, 1, 5, 5), "one term only"),
        (nn.Linear(1, 8), (2, 1), "one term only"),
        (nn.Linear(2, 8), (2,), ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_obstacles(layer: nn.Module, x: tuple[int, ...], obstacle: str) -> None:
    (site,) = find_sites(capture(nn.Sequential(layer, nn.ReLU()).eval(), (torch.randn(x),)))
    assert obstacle in site.obstacle
    assert bool(obstacle) == bool(site.obstacle)


# --- gated branches ---------------------------------------------------------------------------------------------------


GATES: dict[str, Forward] = {
    "relu first": lambda m, x: m.out(F.relu(m.fc(x)) * m.up(x)),
    "relu last": lambda m, x: m.out(m.up(x) * F.relu(m.fc(x))),
    "relu squared": lambda m, x: m.out(F.relu(m.fc(x)) ** 2 * m.up(x)),
    "relu6": lambda m, x: m.out(F.relu6(m.fc(x)) * m.up(x)),
}


@pytest.mark.parametrize("case", GATES)
def test_a_gated_projection_is_found(case: str) -> None:
    nodes = {node.name: node for node in _bundle("gates")[0].graph.nodes}
    (site,) = sites_in("gates", case)
    assert isinstance(site.gated, GatedProjection)
    assert site.name.endswith(".fc")
    assert nodes[site.gated.node].meta["module_path"] == site.name.replace(".fc", ".up")
    assert nodes[site.gated.product_node].target is torch.ops.aten.mul.Tensor


GATED_MISSES: dict[str, Forward] = {
    "projection used twice": lambda m, x: F.relu(m.fc(x)) * (u := m.up(x)) + u,
    "gate used twice": lambda m, x: (r := F.relu(m.fc(x))) * m.up(x) + r,
    "added": lambda m, x: F.relu(m.fc(x)) + m.up(x),
    "projection shifted": lambda m, x: F.relu(m.fc(x)) * (m.up(x) + 1),
    "projection broadcast": lambda m, x: F.relu(m.fc(x)) * m.narrow(x),
    "scalar": lambda m, x: F.relu(m.fc(x)) * 2,
    "no projection": lambda m, x: F.relu(m.fc(x)) * x.sum(),
    "divided": lambda m, x: F.relu(m.fc(x)) / m.up(x),
}


@pytest.mark.parametrize("case", GATED_MISSES)
def test_near_misses_of_gated_projections(case: str) -> None:
    (site,) = sites_in("gated misses", case)
    assert site.gated is None


def test_a_convolution_is_no_gated_projection() -> None:
    assert one_site(lambda m, x: F.relu(m.conv(x)) * m.small(x), IMAGE).gated is None


# --- names and sizes --------------------------------------------------------------------------------------------------


def test_a_layer_used_twice_gives_two_names() -> None:
    first, second = find_sites(graph_of(lambda m, x: F.relu(m.fc(m.out(F.relu(m.fc(x)))))))
    assert (first.name, second.name) == ("fc", "fc#2")
    assert first.weight == second.weight == "fc.weight"
    assert first.node != second.node


def test_sites_do_not_depend_on_the_batch() -> None:
    model = Model(lambda m, x: F.relu(m.bn(m.conv(x)) + m.small(x)), IMAGE).eval()
    batch = torch.export.Dim("batch")
    free = capture(model, (IMAGE,), dynamic_shapes={"x": {0: batch}})
    (mine,), (fixed,) = find_sites(free), find_sites(capture(model, (IMAGE,)))
    assert replace(mine, chain=()) == replace(fixed, chain=())  # its nodes may be numbered otherwise
    assert len(mine.chain) == len(fixed.chain) == 2


def test_half_precision_sites_are_sites() -> None:
    model = Model(lambda m, x: F.relu(m.fc(x) + m.embed), ROWS).eval().bfloat16()
    (site,) = find_sites(capture(model, (ROWS.bfloat16(),)))
    assert site.obstacle == ""
    widened = Model(lambda m, x: F.relu(m.fc(x) + m.embed.float()), ROWS).eval().bfloat16()
    assert find_sites(capture(widened, (ROWS.bfloat16(),))) == ()


TABLES: dict[str, tuple[dict[str, Forward], Tensor]] = {
    "activations": ({name: _then(function) for name, (function, _) in ACTIVATIONS.items()}, ROWS),
    "others": ({name: _then(function) for name, function in OTHERS.items()}, ROWS),
    "linear misses": (LINEAR_MISSES, ROWS),
    "conv misses": (CONV_MISSES, IMAGE),
    "gates": (GATES, ROWS),
    "gated misses": (GATED_MISSES, ROWS),
}
