"""Targets, limits, rounds and refusals of `shrink`; on any error the model is untouched, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from exprune_fx.errors import CaptureError, ExpruneError, PlanError, ShrinkError
from exprune_fx.graph import capture, verify
from exprune_fx.static import ChannelPlan, Magnitude, Random, shrink
from tests.static.nets import X, assert_untouched, attributes, net, snapshot


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    return capture(net(), (X,))


def counted(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def sizes(model: nn.Module) -> tuple[int, int, int]:
    """Channels of conv1 (and the stream), of conv2, and neurons of fc1."""
    names = ("conv1.weight", "conv2.weight", "fc1.weight")
    one, two, three = (model.get_parameter(name).shape[0] for name in names)
    return one, two, three


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("goal", [0.8, 0.5, 0.2])
def test_targets_are_met_and_only_just(gm: fx.GraphModule, goal: float, ranking: Any) -> None:
    params = shrink(gm, criterion=Random(0), target_params=goal, ranking=ranking)
    assert counted(params.model) == params.report.params_after
    assert goal - 0.25 < params.report.params_after / params.report.params_before <= goal
    flops = shrink(gm, criterion=Random(0), target_flops=goal, ranking=ranking)
    assert goal - 0.25 < flops.report.flops_after / flops.report.flops_before <= goal
    verify(flops.model)  # type: ignore[arg-type]


def test_flops_are_those_of_the_layers(gm: fx.GraphModule) -> None:
    report = shrink(gm, criterion=Random(0), fraction_removed=0.5, ranking="layer").report
    pixels = 64
    assert report.flops_before == 2 * (pixels * (3 * 8 * 9 + 8 * 12 + 12 * 8 * 9) + 32 * 10 + 10 * 5)
    assert report.flops_after == 2 * (pixels * (3 * 4 * 9 + 4 * 6 + 6 * 4 * 9) + 16 * 5 + 5 * 5)


def test_a_fraction_of_members_globally(gm: fx.GraphModule) -> None:
    report = shrink(gm, criterion=Random(0), fraction_removed=0.4).report
    assert sum(group.removed for group in report.groups) == 12  # of 8 + 12 + 10
    assert report.members_removed == pytest.approx(0.4)


def test_nothing_to_remove_leaves_everything(gm: fx.GraphModule) -> None:
    small = shrink(gm, criterion=Random(0), target_params=1.0)
    assert sizes(small.model) == (8, 12, 10)
    assert torch.equal(small.model(X), gm(X))


def test_what_scores_lowest_goes(gm: fx.GraphModule) -> None:
    small = shrink(gm, criterion=Magnitude(), fraction_removed=0.5, ranking="layer")
    for group in small.report.groups:
        assert group.score_removed is not None
        assert group.score_kept is not None
        assert group.score_removed[1] <= group.score_kept[0]


def test_limits(gm: fx.GraphModule) -> None:
    rounded = shrink(gm, criterion=Random(0), target_params=0.5, round_to=4)
    assert all(size % 4 == 0 or size == 10 for size in sizes(rounded.model))
    kept = shrink(gm, criterion=Random(0), fraction_removed=0.9, ranking="layer", min_kept=5)
    assert sizes(kept.model) == (5, 5, 5)
    ratios = shrink(gm, criterion=Random(0), target_params=1.0, ratios={"conv2": 0.75})
    assert sizes(ratios.model) == (8, 3, 10)
    ignored = shrink(gm, criterion=Random(0), target_params=0.9, ignore=("conv3",))
    assert sizes(ignored.model)[:2] == (8, 12)
    assert "ignored: conv3" in str(ignored.report)


def test_rounds_follow_the_schedule_and_train_in_between() -> None:
    model = net()
    seen: list[tuple[int, int]] = []
    small = shrink(
        model,
        (X,),
        criterion=Magnitude(),
        target_params=0.4,
        steps=3,
        schedule=lambda progress: progress**2,
        finetune=lambda trained, step: seen.append((step, counted(trained))),
    )
    assert [step for step, _ in seen] == [0, 1, 2]
    whole = small.report.params_before
    for (_, params), share in zip(seen, (1 / 9, 4 / 9, 1), strict=True):
        assert 1 - 0.6 * share - 0.2 < params / whole <= 1 - 0.6 * share
    assert len(small.plan.rounds) == 3
    fresh = net()
    small.plan.apply(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(X), model(X))


def test_the_report_reads_as_a_table(gm: fx.GraphModule) -> None:
    small = shrink(gm, criterion=Magnitude(), target_flops=0.5)
    text = str(small.report)
    assert text.startswith("Shrunk by Magnitude\n  parameters ")
    assert "conv2.weight[0]" in text
    assert small.report.to_dict()["flops_removed"] == small.report.flops_removed


# ---------------------------------------------------------------------------------------------------- refusals


def refused(model: nn.Module, message: str, error: type[ExpruneError] = ShrinkError, **wanted: Any) -> str:
    """Shrinking raises, and the model is untouched."""
    before, plain = snapshot(model), attributes(model)
    with pytest.raises(error, match=message) as caught:
        shrink(model, (X,), **{"criterion": Random(0), **wanted})
    assert_untouched(model, before, plain)
    return str(caught.value)


def test_a_target_that_cannot_be_met() -> None:
    text = refused(net(), "the target cannot be met: 0.001 of the whole shall remain", target_params=0.001)
    assert "min_kept" in text


def test_a_group_that_cannot_be_removed() -> None:
    text = refused(
        net(), "nothing can be removed: it is axis 1 of the model's output", target_params=0.5, ratios={"fc2": 0.5}
    )
    assert "'fc2'" in text


def test_a_model_without_free_groups() -> None:
    text = refused(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), "no group that can be removed", target_params=0.5)
    assert "is axis 1 of the model's output" in text


def test_constant_sizes_in_the_forward_are_named() -> None:
    text = refused(net(flat=32), "does not run with the smaller sizes", fraction_removed=0.5, ranking="layer")
    assert "x.view(-1, 8 * 4)" in text
    assert "nets.py" in text
    assert "conv1.weight[0]" in text
    assert "conv2.weight[0]" not in text, "what the constant does not touch is not blamed"


def test_constant_sizes_can_be_kept() -> None:
    model = net(flat=32)
    small = shrink(model, (X,), criterion=Random(0), fraction_removed=0.5, ranking="layer", fixed="keep")
    assert sizes(model) == (8, 6, 5)
    assert "fixes its size" in str(small.report)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "0 targets are given"),
        ({"target_flops": 0.5, "target_params": 0.5}, "2 targets are given"),
        ({"target_flops": 1.5}, "a target is 1.5"),
        ({"fraction_removed": 1.0}, "a target is 1.0"),
        ({"target_flops": 0.5, "steps": 0}, "steps is 0"),
        ({"target_flops": 0.5, "round_to": 0}, "round_to is 0"),
        ({"target_flops": 0.5, "ratios": {"conv2": 1.0}}, "ratios"),
        ({"target_flops": 0.5, "ratios": {"nowhere": 0.5}}, "no group has this name"),
        ({"target_flops": 0.5, "ignore": ("nowhere",)}, "ignore names 'nowhere'"),
    ],
)
def test_requests_that_make_no_sense(wanted: dict[str, Any], message: str) -> None:
    refused(net(), message, **wanted)


def test_inputs_that_do_not_fit() -> None:
    model = net()
    before, plain = snapshot(model), attributes(model)
    with pytest.raises(CaptureError):
        shrink(model, (torch.randn(4, 5, 8, 8),), criterion=Random(0), target_flops=0.5)
    assert_untouched(model, before, plain)


def test_what_fine_tuning_raises_takes_all_rounds_back() -> None:
    model = net()
    before, plain = snapshot(model), attributes(model)

    def train(trained: nn.Module, step: int) -> None:
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(1.0)
        if step == 1:
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        shrink(model, (X,), criterion=Random(0), target_params=0.5, steps=2, finetune=train)
    assert_untouched(model, before, plain)


def test_an_interrupt_while_binding_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from exprune_fx.static import module

    model = net()
    before, plain = snapshot(model), attributes(model)
    writes = module.Bindings._writes
    real: Callable[[Any], Any] = writes

    def interrupted(self: Any) -> Any:
        if self._module is not model:  # the trial on a copy goes well
            yield from real(self)
            return
        for i, write in enumerate(real(self)):
            if i == 5:
                raise KeyboardInterrupt
            yield write

    monkeypatch.setattr(module.Bindings, "_writes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, (X,), criterion=Random(0), target_params=0.5)
    assert_untouched(model, before, plain)


def test_a_weight_that_is_made_anew_at_each_call_is_never_cut() -> None:
    model = net()
    nn.utils.parametrizations.weight_norm(model.fc1)
    small = shrink(model, (X,), criterion=Random(0), fraction_removed=0.5, ranking="layer")
    assert not [cut.name for cut in small.plan.rounds[0].tensors if "parametrizations" in cut.name]
    assert model.fc1.weight.shape == (10, 32), "its axes are pinned, for no rule follows them"
    assert model(X).shape == (4, 5)


# -------------------------------------------------------------------------------------------------------- plans


def test_a_plan_refuses_another_model_and_leaves_it_alone() -> None:
    plan = shrink(net(), (X,), criterion=Random(0), fraction_removed=0.5).plan
    other = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(PlanError, match="the model has no"):
        plan.apply(other)
    shrunk = net()
    plan.apply(shrunk)
    before, plain = snapshot(shrunk), attributes(shrunk)
    with pytest.raises(PlanError, match="the plan cuts one of"):
        plan.apply(shrunk)
    assert_untouched(shrunk, before, plain)


def test_the_plan_of_a_graph_does_not_replay_on_modules(gm: fx.GraphModule) -> None:
    plan = shrink(gm, criterion=Random(0), fraction_removed=0.5).plan
    model = net()
    before, plain = snapshot(model), attributes(model)
    with pytest.raises(PlanError, match="of a graph"):
        plan.apply(model)
    assert_untouched(model, before, plain)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ShrinkError, match="cannot shrink a type"):
        shrink(nn.Linear, (X,), criterion=Random(0), target_flops=0.5)  # type: ignore[arg-type]


def test_plans_are_plain_data(tmp_path: Any, gm: fx.GraphModule) -> None:
    plan = shrink(gm, criterion=Random(0), fraction_removed=0.5).plan
    assert ChannelPlan.from_dict(plan.to_dict()) == plan
    plan.save(tmp_path / "plan.json")
    assert ChannelPlan.load(tmp_path / "plan.json") == plan
    group = plan.rounds[0].groups[0]
    assert sorted((*group.kept[0], *group.removed[0])) == list(range(group.size))
    for text in ("{", "[]", '{"format": "exprune-channel-plan", "version": 9}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PlanError):
            ChannelPlan.load(tmp_path / "bad.json")
    with pytest.raises(PlanError, match="corrupt"):
        ChannelPlan.from_dict({"format": "exprune-channel-plan", "version": 1, "source": "graph", "rounds": [{}]})
