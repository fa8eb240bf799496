"""transform with native operators: what a user gets, what it shares, and what measure and explain say of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.calibration import calibrate
from exprune_fx.graph import capture
from exprune_fx.graph.edits import tensor_at, tensor_names
from exprune_fx.graph.printing import python_text
from exprune_fx.graph.verify import verify
from exprune_fx.guards import Calibrated, Guard
from exprune_fx.measurement import measure
from exprune_fx.ops import native
from exprune_fx.pipeline import normalise, readable_form, record_of, rewrite, transform
from exprune_fx.plan import Plan, SitePlan, SiteTiming
from exprune_fx.report import explain
from exprune_fx.sites import find_sites
from exprune_fx.staging import fewer_bits
from tests.captures import captured_alike
from tests.passes.fused import need_operators
from tests.passes.staging import EVERY_GUARD, GatedNet, ResidualNet, SquaredNet, plan_for, randomised

MODELS = [(ResidualNet, (3, 8, 8)), (GatedNet, (7, 6)), (SquaredNet, (7, 6))]
FUSED = {ResidualNet: 4, GatedNet: 1, SquaredNet: 1}


@pytest.fixture(autouse=True)
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)


def captured(kind: type[nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, fx.GraphModule, Tensor]:
    model = randomised(kind()).float()
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    return model, captured_alike(model, x, ({0: torch.export.Dim("batch")},)), x


def fused(gm: fx.GraphModule) -> list[str]:
    return [str(node.target).split(".")[1] for node in gm.graph.nodes if "exprune.staged_" in str(node.target)]


@pytest.mark.parametrize("guard", EVERY_GUARD, ids=str)
@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_users_get_fused_operators_that_equal_the_readable_form(
    kind: type[nn.Module], shape: tuple[int, ...], guard: Guard
) -> None:
    _, gm, x = captured(kind, shape)
    plan = plan_for(normalise(gm), guard)
    lowered, readable = transform(gm, plan), transform(gm, plan, lower=False)
    assert len(fused(lowered)) == len(plan.staged)
    assert fused(readable) == []
    verify(lowered)
    with torch.no_grad():
        for batch in (x, x[:1], x[:0]):
            torch.testing.assert_close(lowered(batch), readable(batch), rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_without_packing_the_models_own_tensors_are_read(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    _, gm, x = captured(kind, shape)
    dense = normalise(gm)
    plan = plan_for(dense, EVERY_GUARD[-1])
    live = rewrite(dense, plan, lower=True, pack=False)
    assert fused(live)
    assert not any("ffn" in name for name in fused(live))  # whose second weight would be transposed at each call
    own = {id(tensor_at(dense, name)) for name in tensor_names(dense)}
    made = [name for name in tensor_names(live) if id(tensor_at(live, name)) not in own]
    assert all(name.endswith(".limits") for name in made)
    with torch.no_grad():
        torch.testing.assert_close(live(x), transform(gm, plan)(x), rtol=1e-4, atol=1e-4)  # sums in another order


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_the_model_is_untouched_and_no_weight_is_held_twice(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, gm, x = captured(kind, shape)
    before = copy.deepcopy(model.state_dict())
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    lowered = transform(gm, plan_for(normalise(gm), Calibrated(0.1)))
    assert len(fused(lowered)) == FUSED[kind]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.stride() == strides[name]
    record = record_of(lowered)
    assert record is not None
    shared = set(tensor_names(lowered)) & set(tensor_names(record.dense))
    assert all(tensor_at(lowered, name) is tensor_at(record.dense, name) for name in shared)
    assert len(shared) == len(tensor_names(record.dense))
    verify(record.dense)
    with torch.no_grad():
        torch.testing.assert_close(record.dense(x), model(x), rtol=1e-4, atol=1e-4)  # folded batch norms


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_measure_counts_a_lowered_graph_in_its_readable_form(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    _, gm, x = captured(kind, shape)
    plan = plan_for(normalise(gm), Calibrated(0.1))
    lowered, readable = transform(gm, plan), transform(gm, plan, lower=False)
    outputs: list[Tensor] = []
    assert measure(lowered, [(x,)], outputs.append) == measure(readable, [(x,)])
    torch.testing.assert_close(outputs[0], readable(x), rtol=1e-5, atol=1e-5)  # packed weights, another order of sums
    assert python_text(readable_form(lowered)).replace("reshape", "view") == python_text(readable)
    assert readable_form(readable) is readable
    assert readable_form(gm) is gm


def test_where_there_are_no_kernels_the_readable_form_is_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gm, _ = captured(ResidualNet, (3, 8, 8))
    plan = plan_for(normalise(gm), Calibrated(0.1))
    monkeypatch.setattr(native, "available", lambda: False)
    assert python_text(transform(gm, plan)) == python_text(transform(gm, plan, lower=False))


def test_kernels_are_not_asked_for_where_nothing_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    def never() -> bool:
        raise AssertionError

    monkeypatch.setattr(native, "available", never)
    _, gm, x = captured(GatedNet, (7, 6))
    plan = Plan(
        tuple(SitePlan(entry.site, entry.weight_shape) for entry in plan_for(normalise(gm), Calibrated(0.1)).sites)
    )
    assert torch.equal(transform(gm, plan)(x), transform(gm, plan, lower=False)(x))
    transform(gm, plan_for(normalise(gm), Calibrated(0.1)), lower=False)


def test_a_flatten_behind_a_fused_convolution_takes_channels_last() -> None:
    _, gm, x = captured(ResidualNet, (3, 8, 8))
    lowered = transform(gm, plan_for(normalise(gm), Calibrated(0.1)))
    seen = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            seen[n.name] = super().run_node(n)
            return seen[n.name]

    with torch.no_grad():
        Keep(lowered).run(x)
    assert not seen["max_pool2d"].is_contiguous(), "else this test shows nothing"


class _Mixed(nn.Module):
    """A site that a kernel holds, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.grouped(self.conv(x).relu()).relu()
        return y


def test_explain_names_the_operator_of_each_site_or_why_it_stays_readable() -> None:
    _, gm, x = captured(_Mixed, (4, 8, 8))
    plan = plan_for(normalise(gm), Calibrated(0.1), count=1)
    lowered = transform(gm, plan)
    found = explain(lowered, measure(lowered, [(x,)]))
    assert [(site.operator, site.kept_readable) for site in found.sites] == [
        ("staged_conv2d_relu", ""),
        ("", "its convolution is grouped"),
    ]
    text = str(found)
    assert "conv     exprune.staged_conv2d_relu" in text
    assert "grouped  its readable nodes: its convolution is grouped" in text
    assert "\nOperators\n" in text
    assert "\nTimings\n" not in text
    readable = explain(transform(gm, plan, lower=False))
    assert "\nOperators\n" not in str(readable)
    json.dumps(found.to_dict())


def test_explain_shows_what_calibration_timed() -> None:
    _, gm, _ = captured(SquaredNet, (6,))
    dense = normalise(gm)
    timing = SiteTiming(2e-4, "oneDNN linear", 1e-4, "prefix stages at 8", 1, 2, {"linear": 3e-4})
    entry = plan_for(dense, Calibrated(0.1), count=1).for_site("fc2")
    assert entry is not None
    fields = {**vars(entry), "timing": timing, "reason": "it is faster"}
    plan = Plan((SitePlan(**fields),), objective="latency", examples=9, machine="a machine")
    found = explain(transform(gm, plan))
    (row,) = [line for line in str(found).split("\n") if "oneDNN linear" in line]
    assert row.split() == [
        "fc2",
        "1",
        "2",
        "oneDNN",
        "linear",
        "0.200",
        "prefix",
        "stages",
        "at",
        "8",
        "0.100",
        "2.00x",
    ]
    assert "measured by calibration on a machine" in str(found).replace("\n", " ")
    assert found.sites[0].operator == "staged_ffn"
    (second,) = [other for other in found.others if other.name == "fc3"]
    assert second.reason == "no site, but computed together with fc2: the zeros from there are skipped"
    assert json.loads(json.dumps(found.to_dict()))["sites"][0]["timing"]["dense_s"] == 2e-4


def test_sites_are_found_again_in_the_dense_graph_of_the_record() -> None:
    _, gm, _ = captured(ResidualNet, (3, 8, 8))
    record = record_of(transform(gm, plan_for(normalise(gm), Calibrated(0.1))))
    assert record is not None
    assert find_sites(record.dense) == record.sites


def test_codes_and_what_they_hold_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewer_bits, "LARGE_BYTES", 1)
    _, gm, x = captured(SquaredNet, (6,))
    plan = plan_for(normalise(gm), Calibrated(0.1))
    found = explain(transform(gm, plan))
    held = next(site.code_bytes for site in found.sites if site.operator)
    weight = normalise(gm).get_parameter("fc2.weight")
    assert held == weight.numel() + 64
    assert "by its weights in fewer bits (0.0 MB more)" in " ".join(str(found).split())
    with torch.no_grad():
        torch.testing.assert_close(
            transform(gm, plan)(x[:2]), transform(gm, plan, lower=False)(x[:2]), rtol=1e-5, atol=1e-5
        )


def test_what_a_coded_head_holds_and_computes_is_explained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)).eval()
    x = torch.randn(8, 8, 8, 8)
    gm = capture(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    plan = calibrate(gm, [(x,)], Calibrated(0.05), head="coded")
    found = explain(transform(gm, plan))
    (site,) = [site for site in found.sites if site.operator]
    assert (site.head, site.pools, site.code_bytes) == ("coded", True, 3 * 6 * 8 * 9)
    words = " ".join(str(found).split())
    assert "exprune.staged_conv2d_relu, its max pool too, by its weights in fewer bits" in words
    assert "2 FLOPs per multiply-add, a quarter of that for one of 8 bits." in words
