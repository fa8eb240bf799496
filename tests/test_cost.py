"""FLOPs: against torch's own counter where it counts the same, and against numbers worked out by hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from exprune_fx.cost import dense_flops, evaluate, model_flops, site_cost
from exprune_fx.graph import capture
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.sites import Site, find_sites

aten = torch.ops.aten


class Everything(nn.Module):
    """Every counted operation once, on one batch of pictures [N, 4, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.wide = nn.Linear(6, 10), nn.Linear(6, 5, bias=False)
        self.conv1, self.conv2 = nn.Conv1d(4, 6, 3, 2, 1), nn.Conv2d(4, 8, 3, (2, 1), 1, 1, 2)
        self.conv3, self.same = nn.Conv3d(1, 3, 2), nn.Conv2d(4, 3, 3, padding="same", dilation=2)
        self.up1, self.up2 = nn.ConvTranspose1d(4, 5, 3, 2), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2)
        self.up3 = nn.ConvTranspose3d(1, 2, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        flat = x.flatten(0, 1)
        row = x.flatten(2)
        return (
            self.linear(x),
            self.wide(flat[0]),
            self.conv1(row),
            self.conv2(x),
            self.same(x),
            self.conv3(x.unsqueeze(1)),
            self.up1(row),
            self.up2(x),
            self.up3(x.unsqueeze(1)),
            torch.mm(flat[0], flat[1]),
            torch.bmm(flat, flat.mT),
            torch.matmul(x, x.mT),
            torch.addmm(flat[0], flat[1], flat[2]),
            torch.baddbmm(flat, flat, flat),
            torch.einsum("bcij, bcjk -> bik", x, x),
            F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3, :].mul(2)),
            F.relu(F.max_pool2d(x, 2)),
        )


@functools.cache
def _everything() -> fx.GraphModule:
    batch = torch.export.Dim("batch", min=2, max=64)
    return capture(Everything().eval(), (torch.randn(3, 4, 6, 6),), dynamic_shapes={"x": {0: batch}})


def _counted(model: Callable[..., Any], *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(*inputs)
    return int(counter.get_total_flops())


def _sizes(gm: fx.GraphModule, batch: int) -> dict[sympy.Expr, int]:
    return dict.fromkeys(sorted(model_flops(gm).free_symbols, key=str), batch)


@pytest.mark.parametrize("batch", [2, 7])
def test_a_model_counts_as_torch_counts(batch: int) -> None:
    gm = _everything()
    assert len(_sizes(gm, batch)) == 1, "one symbolic size: the batch"
    assert evaluate(model_flops(gm), _sizes(gm, batch)) == _counted(gm, torch.randn(batch, 4, 6, 6))


def test_every_node_counts_as_torch_counts() -> None:
    gm = _everything()

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = super().run_node(n)
            expected[n] = int(counter.get_total_flops())
            return result

    expected: dict[fx.Node, int] = {}
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted on a CPU
        Counting(gm).run(torch.randn(5, 4, 6, 6))
    counted = {node: evaluate(dense_flops(node), _sizes(gm, 5)) for node in expected}
    assert counted == expected
    # two linears, seven convolutions, six products, one attention: none of them is lost in a zero
    assert sum(value > 0 for value in counted.values()) == 16


def test_a_size_that_is_not_given_is_refused() -> None:
    with pytest.raises(TypeError):
        evaluate(model_flops(_everything()), {})


# --- sites ------------------------------------------------------------------------------------------------------------


class Sites(nn.Module):
    """conv 4 -> 8 on 6x6, stride 2 (3x3 out), grouped conv, flattened linear, gated linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(8, 6, 3, 1, 1, 1, 2)
        self.fc = nn.Linear(6 * 9, 10)
        self.up, self.gate = nn.Linear(10, 7), nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc(F.relu(self.grouped(F.relu(self.conv(x)))).flatten(1)))
        y: Tensor = F.relu(self.gate(x)) * self.up(x)
        return y


@functools.cache
def _sites() -> tuple[fx.GraphModule, dict[str, Site]]:
    gm = capture(Sites().eval(), (torch.randn(2, 4, 6, 6),))
    return gm, {site.name: site for site in find_sites(gm)}


DENSE = {  # 2 * batch 2 * outputs * multiply-adds of one
    "conv": 2 * 2 * 8 * 9 * (4 * 9),
    "grouped": 2 * 2 * 6 * 9 * (4 * 9),
    "fc": 2 * 2 * 10 * 54,
    "gate": 2 * (2 * 2 * 7 * 10),
}
OUTPUTS = {"conv": 2 * 8 * 9, "grouped": 2 * 6 * 9, "fc": 2 * 10, "gate": 2 * 7}


def _at(
    name: str, stages: tuple[int, ...], guard: Guard, alive: tuple[float, ...], **more: float
) -> tuple[float, float]:
    gm, sites = _sites()
    work, overhead = site_cost(gm, sites[name], "prefix", stages, guard).at(alive, **more)
    return float(work), float(overhead)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("stages", [(1,), (1, 2), (1, 2, 3)], ids=str)
def test_where_nothing_stops_staged_is_dense_and_the_tests(name: str, stages: tuple[int, ...]) -> None:
    gm, sites = _sites()
    assert site_cost(gm, sites[name], "prefix", stages, Threshold(0)).dense == DENSE[name]
    ones = (1.0,) * len(stages)
    assert _at(name, stages, Threshold(0), ones) == (DENSE[name], len(stages) * OUTPUTS[name])
    assert _at(name, stages, Calibrated(), ones) == (DENSE[name], len(stages) * OUTPUTS[name])


@pytest.mark.parametrize("guard", [StatsTest(0.1), FinitePopulation(0.1)], ids=str)
def test_statistics_cost_2n_plus_6_for_the_terms_that_are_new(guard: Guard) -> None:
    assert _at("conv", (2,), guard, (1.0,))[1] == OUTPUTS["conv"] * (2 * 2 + 6)
    assert _at("conv", (2, 3), guard, (1.0, 1.0))[1] == OUTPUTS["conv"] * ((2 * 2 + 6) + (2 * 1 + 6))
    assert _at("conv", (2, 3), guard, (0.25, 0.1))[1] == OUTPUTS["conv"] * ((2 * 2 + 6) + 0.25 * (2 * 1 + 6))


def test_stages_by_hand() -> None:
    """fc: 6 terms of 9 inputs; after 1 term 60 % go on, after 3 terms 20 % do, to the end."""
    work, overhead = _at("fc", (1, 3), Threshold(0), (0.6, 0.2))
    assert work == pytest.approx(2 * 20 * 9 * (1 + 0.6 * 2 + 0.2 * 3))
    assert overhead == pytest.approx(20 * (1 + 0.6))
    # grouped: 4 terms of 9 for every one of 108 outputs
    assert _at("grouped", (2,), Threshold(0), (0.5,))[0] == pytest.approx(2 * 108 * 9 * (2 + 0.5 * 2))


def test_nothing_alive_costs_the_head_only() -> None:
    assert _at("conv", (1,), Threshold(0), (0.0,)) == (DENSE["conv"] / 4, OUTPUTS["conv"])


def test_a_gated_branch_is_read_where_the_gate_is_not_zero() -> None:
    half = DENSE["gate"] / 2
    assert _at("gate", (5,), Threshold(0), (1.0,), gate_nonzero=0.0)[0] == half
    assert _at("gate", (5,), Threshold(0), (0.0,), gate_nonzero=0.3)[0] == pytest.approx(half / 2 + 0.3 * half)


def test_the_norms_of_a_bound_are_counted() -> None:
    # linear: 5 a test and neuron; 2 FLOPs an input of a row, for all 54 inputs and for the 45 that are not seen
    assert _at("fc", (1,), Bound(), (1.0,))[1] == 5 * 20 + 2 * 2 * (54 + 45)
    # convolution: the same an input pixel (36 of each of 2 pictures; 4 and 3 channels), and the box of 9 an output pixel
    norms = 2 * (2 * 36) * (4 + 3) + 2 * (2 * 9) * 9
    assert _at("conv", (1,), Bound(), (1.0,))[1] == 5 * OUTPUTS["conv"] + norms


def test_a_principal_head_by_hand() -> None:
    gm, sites = _sites()
    cost = site_cost(gm, sites["conv"], "principal", (2,), Calibrated())
    down, up = 2 * 2 * (2 * 4 * 36), 2 * 2 * 9 * OUTPUTS["conv"]
    work, overhead = cost.at((0.25,))
    assert float(work) == down + up + 0.25 * DENSE["conv"]
    assert overhead == OUTPUTS["conv"]
    work, _ = site_cost(gm, sites["fc"], "principal", (3,), Calibrated()).at((0.5,))
    assert float(work) == 2 * 3 * (2 * 54) + 2 * 3 * 20 + 0.5 * DENSE["fc"]


def test_a_coded_head_by_hand() -> None:
    """Every multiply-add once in 8 bits, at a quarter, and again for who goes on."""
    gm, sites = _sites()
    work, overhead = site_cost(gm, sites["conv"], "coded", (4,), Calibrated()).at((0.25,))
    assert float(work) == DENSE["conv"] * (0.25 + 0.25)
    assert overhead == OUTPUTS["conv"]
    _, overhead = site_cost(gm, sites["conv"], "coded", (4,), Calibrated(), (2, 2)).at((0.25,))
    assert overhead == 3 * OUTPUTS["conv"]


def test_costs_are_expressions_in_the_batch_and_in_what_is_alive() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    gm = capture(Sites().eval(), (torch.randn(3, 4, 6, 6),), dynamic_shapes={"x": {0: batch}})
    site = next(site for site in find_sites(gm) if site.name == "conv")
    cost = site_cost(gm, site, "prefix", (1, 2), StatsTest(0.1))
    (size,) = cost.dense.free_symbols
    assert cost.work.free_symbols == {size, *cost.alive}
    assert sympy.diff(cost.work, size, 2) == 0
    assert evaluate(cost.dense, {size: 2}) == DENSE["conv"]
    fixed = _at("conv", (1, 2), StatsTest(0.1), (0.5, 0.25))
    assert tuple(evaluate(part, {size: 2}) for part in cost.at((0.5, 0.25))) == pytest.approx(fixed)


def test_as_many_fractions_as_stages_are_asked_for() -> None:
    with pytest.raises(ValueError, match="shorter"):
        _at("conv", (1, 2), Threshold(0), (1.0,))
    assert math.isfinite(_at("conv", (1,), Threshold(0), (1.0,))[0])


def test_fractions_are_taken_exactly() -> None:
    """Floats inside an expression sum up in the order in which sympy holds them, which differs from run to run."""
    gm, sites = _sites()
    alive = (0.1, 0.7 / 3)
    work, overhead = site_cost(gm, sites["fc"], "prefix", (1, 3), StatsTest(0.1)).at(alive, 0.3)
    assert not (work + overhead).atoms(sympy.Float)
