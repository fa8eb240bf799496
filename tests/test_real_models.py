"""The whole chain on architectures as people write them: tiny, random, from capture to the report.

Bound is proved, so its outputs are the dense ones to rounding. The tolerance is of the largest output: float32 sums of
a few hundred terms in another order differ by some 1e-6 of it, bfloat16 by a few of its steps of 2^-8.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import exprune_fx as ex

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * scale.to(x.dtype) * self.weight


class GatedBlock(nn.Module):
    """Llama's feed-forward with ReLU in SiLU's place, on a residual stream."""

    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + cast(Tensor, self.down(F.relu(self.gate(h)) * self.up(h)))


def gated() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), GatedBlock(), GatedBlock(), nn.Linear(32, 8))


class PreActivation(nn.Module):
    def __init__(self, narrow: int, wide: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(narrow), nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(wide), nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.short = nn.Conv2d(narrow, wide, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        return cast(Tensor, self.conv2(F.relu(self.norm2(self.conv1(h)))) + self.short(h))


def pre_activation() -> nn.Module:
    blocks = [PreActivation(16, 16, 1), PreActivation(16, 32, 2)]
    pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.BatchNorm2d(32), *pool, nn.Linear(32, 10))


def norm_relu6(*layers: nn.Conv2d) -> list[nn.Module]:
    return [step for conv in layers for step in (conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True))]


def mobile() -> nn.Module:
    convs = (nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32))
    project = [nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10)]
    return nn.Sequential(*norm_relu6(*convs), *project, *norm_relu6(nn.Conv2d(16, 32, 1)), *tail)


class DenseLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


def dense_net() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3, padding=1), DenseLayer(8), DenseLayer(16), nn.AvgPool2d(2), nn.BatchNorm2d(24)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


def double_conv(narrow: int, wide: int) -> nn.Module:
    steps: list[nn.Module] = []
    for width in (narrow, wide):
        steps += [nn.Conv2d(width, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU(inplace=True)]
    return nn.Sequential(*steps)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle, self.decode = double_conv(3, 8), double_conv(8, 16), double_conv(16, 8)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.encode(x)
        return cast(Tensor, self.out(self.decode(torch.cat([skip, self.up(self.middle(F.max_pool2d(skip, 2)))], 1))))


def conv1d() -> nn.Module:
    body = [nn.Conv1d(4, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 3)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 5))


def conv3d() -> nn.Module:
    body = [nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 5))


def average_pools() -> nn.Module:
    body = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(16 * 2 * 2, 32), nn.ReLU(), nn.Linear(32, 10))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 32)
        self.left, self.right = nn.Linear(32, 3), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = F.relu(self.second(F.relu(self.first(x))))
        return {"left": self.left(h), "rest": (self.right(h), h)}


class SharedConv(nn.Module):
    """One convolution used twice, one ReLU module used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return cast(Tensor, self.head(self.relu(self.conv(self.relu(self.conv(x))))))


@dataclass(frozen=True)
class Case:
    """A model, its input without the batch, and the sites with whether their terms are exchangeable."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: dict[str, bool]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format

    def input(self, batch: int, seed: int = 0) -> Tensor:
        x = torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed)).to(self.dtype)
        return x.to(memory_format=self.memory_format)

    def model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = randomise(self.make()).to(self.dtype)
            return cast(nn.Module, model.to(memory_format=self.memory_format))  # type: ignore[call-overload] # torch's overloads leave it out


def randomise(model: nn.Module) -> nn.Module:
    """Batch norms with statistics, scales and shifts of their own: a fresh one does nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, -0.2, 0.3)
    return model


GATES = {"1.gate": True, "2.gate": True}
# A norm that comes after an addition cannot be folded: such sites are found, and stay dense.
PRE = {"0": False, "1.conv1": True, "1.conv2": True, "2.conv1": True, "2.conv2": True}
CASES = {
    "gated": Case(gated, (7, 16), GATES),
    "gated bfloat16": Case(gated, (7, 16), GATES, torch.bfloat16),
    "gated float64": Case(gated, (7, 16), GATES, torch.float64),
    "pre-activation": Case(pre_activation, (3, 10, 10), PRE),
    "channels last": Case(pre_activation, (3, 10, 10), PRE, memory_format=torch.channels_last),
    "mobile": Case(mobile, (3, 12, 12), {"0": False, "3": True, "6": False, "11": True}),
    "dense net": Case(dense_net, (3, 8, 8), {"1.conv1": True, "2.conv1": False}),
    "u-net": Case(
        UNet,
        (3, 8, 8),
        {"encode.0": False, "encode.3": True, "middle.0": True, "middle.3": True, "decode.0": False, "decode.3": True},
    ),
    "conv1d": Case(conv1d, (4, 20), {"0": False, "4": True}),
    "conv3d": Case(conv3d, (2, 6, 6, 6), {"0": False, "3": True}),
    "average pools": Case(average_pools, (3, 14, 14), {"0": False, "3": True, "7": True}),
    "two outputs": Case(TwoOutputs, (8,), {"first": False, "second": True}),
    "shared conv": Case(SharedConv, (3, 8, 8), {"stem": False, "conv": True, "conv#2": True}),
}


@torch.no_grad()
def distance(got: Any, dense: Any) -> float:
    """The largest difference, in units of the largest value of the same output."""
    assert pytree.tree_structure(got) == pytree.tree_structure(dense)
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(dense), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if b.numel():
            worst = max(worst, float((a.double() - b.double()).abs().max() / b.double().abs().max()))
    return worst


def bound_everywhere(gm: Any) -> ex.Plan:
    """Bound at every site that can be staged, whether or not it pays, each group in a reversed order."""
    dense = ex.normalise(gm)
    groups = ex.symmetries(dense)
    entries = []
    orders = {}
    for site in ex.find_sites(dense, groups):
        stages = tuple(sorted({max(1, site.terms // 4), max(1, site.terms // 2)}))
        if site.obstacle:
            entries.append(ex.SitePlan(site.name, site.weight_shape))
            continue
        entries.append(ex.SitePlan(site.name, site.weight_shape, head="prefix", guard=ex.Bound(), stages=stages))
        if site.input_group is not None:
            orders[site.input_group] = tuple(reversed(range(site.terms)))
    return ex.Plan(tuple(entries), orders)


@pytest.mark.parametrize("name", CASES)
def test_whole_chain(name: str) -> None:
    case = CASES[name]
    model = case.model().train()  # dropout and batch norm as training leaves them: capture is of eval mode
    gm = ex.capture(model, (case.input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert all(module.training for module in model.modules())
    model.eval()
    found = {site.name: site.exchangeable for site in ex.find_sites(ex.normalise(gm))}
    assert found == case.sites

    forced = ex.transform(gm, bound_everywhere(gm))
    for batch in (3, 1, 0):
        x = case.input(batch, seed=1)
        with torch.inference_mode():
            assert distance(forced(x), model(x)) < TOLERANCE[case.dtype]

    data = [(case.input(8, seed),) for seed in (2, 3)]
    for head in ("prefix", "principal"):
        plan = ex.calibrate(gm, data, guard=ex.Calibrated(0.05), head=head)
        staged = ex.transform(gm, plan)
        measured = ex.measure(staged, data)
        assert plan.staged
        assert 0 < measured.fraction_removed < 1
        # On the data that it was fitted to, each site is as cheap as the plan says, the later ones to what the earlier
        # ones changed.
        first, expected = measured.sites[0], plan.staged[0]
        assert first.fraction_removed == pytest.approx(expected.fraction_removed, abs=1e-6)
        report = str(ex.explain(staged))
        assert all(entry.site in report for entry in plan.sites)
    estimated = ex.calibrate(gm, data, guard=ex.StatsTest(0.05))
    assert all(case.sites[entry.site] for entry in estimated.staged)
    assert estimated == ex.calibrate(gm, data, guard=ex.StatsTest(0.05))


def test_gradients_flow_through_a_staged_graph() -> None:
    case = CASES["two outputs"]
    model = case.model()
    gm = ex.capture(model, (case.input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    staged = ex.transform(gm, bound_everywhere(gm), lower=False)
    gradients = []
    for module in (model, staged):
        x = case.input(4, seed=1).requires_grad_()
        module(x)["left"].sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    assert distance(gradients[1], gradients[0]) < TOLERANCE[torch.float32]


def test_exported_program_from_a_file() -> None:
    case = CASES["pre-activation"]
    model = case.model().eval()
    program = torch.export.export(model, (case.input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    gm = ex.capture(torch.export.load(file))
    data = [(case.input(8, seed=2),)]
    plan = ex.calibrate(gm, data)
    live = ex.capture(model, (case.input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert plan == ex.calibrate(live, data)
    x = case.input(3, seed=1)
    with torch.no_grad():
        assert torch.equal(ex.transform(gm, plan)(x), ex.transform(live, plan)(x))
        assert distance(ex.transform(gm, bound_everywhere(gm))(x), model(x)) < TOLERANCE[torch.float32]


def test_decisions_do_not_depend_on_how_the_data_are_cut() -> None:
    case = CASES["average pools"]
    gm = ex.capture(case.model(), (case.input(2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    x = case.input(60, seed=2)
    plans = [ex.calibrate(gm, [(part,) for part in x.split(size)]) for size in (20, 60, 7)]
    decisions = [([(e.site, e.head, e.stages) for e in plan.sites], plan.orders) for plan in plans]
    assert decisions[0] == decisions[1] == decisions[2]


# --- models of other libraries ----------------------------------------------------------------------------------------


def test_opt() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.OPTConfig(
        vocab_size=40,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.OPTForCausalLM(config).eval()

    def batch(rows: int, length: int, seed: int) -> tuple[tuple[()], dict[str, Any]]:
        ids = torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(seed))
        return (), {"input_ids": ids, "use_cache": False}

    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=60)}
    gm = ex.capture(model, *batch(2, 9, 0), dynamic_shapes={"input_ids": dims, "use_cache": None})
    sites = ex.find_sites(gm)
    # The residual stream: one group through embeddings, positions, layer norms and every block.
    assert [(site.name, site.exchangeable, site.terms) for site in sites] == [
        (f"model.decoder.layers.{layer}.fc1", True, 32) for layer in range(2)
    ]
    assert len({site.input_group for site in sites}) == 1
    data = [batch(4, 11, 1), batch(3, 16, 2)]
    forced = ex.transform(gm, bound_everywhere(gm))
    staged = ex.transform(gm, ex.calibrate(gm, data, guard=ex.Calibrated(0.05)))
    assert ex.measure(staged, data).fraction_removed > 0
    with torch.no_grad():
        kwargs = batch(1, 20, 3)[1]
        assert distance(forced(**kwargs).logits, model(**kwargs).logits) < TOLERANCE[torch.float32]
    assert "layers.1.fc1" in str(ex.explain(staged))


class Graph(nn.Module):
    """Two message-passing layers and a head."""

    def __init__(self, make: Callable[[int, int], nn.Module], relu: bool) -> None:
        super().__init__()
        self.first, self.second, self.head, self.relu = make(8, 32), make(32, 32), nn.Linear(32, 3), relu

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            x = layer(x, edges)
            x = F.relu(x) if self.relu else x
        return cast(Tensor, self.head(x))


def gin_mlp(narrow: int, wide: int) -> nn.Module:
    return nn.Sequential(nn.Linear(narrow, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU())


def random_graph(nodes: int, edges: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, 8, generator=generator), torch.randint(0, nodes, (2, edges), generator=generator)


GRAPHS: dict[str, tuple[Callable[[Any], Callable[[int, int], nn.Module]], bool, dict[str, bool]]] = {
    "GIN": (
        lambda layers: lambda narrow, wide: layers.GINConv(gin_mlp(narrow, wide)),
        False,
        {"first.nn.0": False, "first.nn.3": True, "second.nn.0": True, "second.nn.3": True},
    ),
    "SAGE": (lambda layers: layers.SAGEConv, True, {"first.lin_l": False, "second.lin_l": True}),
    # Between GCN's linear layer and its ReLU lies the sum over neighbours: a pre-activation is no sum of one node's
    # terms any more.
    "GCN": (lambda layers: layers.GCNConv, True, {}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_message_passing(name: str) -> None:
    layers = pytest.importorskip("torch_geometric.nn")
    make, relu, expected = GRAPHS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = randomise(Graph(make(layers), relu)).eval()
    dims = ({0: torch.export.Dim("nodes")}, {1: torch.export.Dim("edges")})
    gm = ex.capture(model, random_graph(10, 30, 0), dynamic_shapes=dims)
    assert {site.name: site.exchangeable for site in ex.find_sites(ex.normalise(gm))} == expected
    data = [random_graph(20, 60, 1), random_graph(30, 50, 2)]
    plan = ex.calibrate(gm, data, guard=ex.Calibrated(0.05))
    staged = ex.transform(gm, plan)
    x, edges = random_graph(15, 40, 3)
    with torch.no_grad():
        assert distance(ex.transform(gm, bound_everywhere(gm))(x, edges), model(x, edges)) < TOLERANCE[torch.float32]
        if not expected:
            assert torch.equal(staged(x, edges), model(x, edges))
    assert (ex.measure(staged, data).fraction_removed > 0) == bool(expected)
    assert ("No site was found" in str(ex.explain(staged))) == (not expected)
