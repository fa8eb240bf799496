"""Scores are what the formulas say, worked out by hand on the same model."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.errors import CalibrationError, ShrinkError
from exprune_fx.graph import capture
from exprune_fx.static import (
    BatchNormScale,
    Criterion,
    Expressiveness,
    Hybrid,
    Magnitude,
    Noise,
    Random,
    Scene,
    Taylor,
    shrink,
)
from exprune_fx.static.criteria.base import relative
from exprune_fx.symmetry import symmetries
from tests.static.nets import Net, X, net

DATA = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(5))
BATCHES = [(DATA[:4],), (DATA[4:],)]
CONV2, STREAM, FC1 = "conv2.weight[0]", "conv1.weight[0]", "fc1.weight[0]"


def scene_of(model: nn.Module, args: tuple[Tensor, ...]) -> Scene:
    shapes = tuple({0: torch.export.Dim("batch")} for _ in args)
    gm = capture(model, args, dynamic_shapes=shapes)
    report = symmetries(gm)
    return Scene(gm, report, report.free)


@pytest.fixture(scope="module")
def model() -> Net:
    return net()


@pytest.fixture(scope="module")
def scene(model: Net) -> Scene:
    return scene_of(model, (X,))


def pairwise(active: Tensor) -> Tensor:
    """Mean over all pairs of inputs of whether they differ, mean over positions: inputs x channels x positions."""
    pairs = list(itertools.combinations(range(len(active)), 2))
    differ = torch.stack([(active[i] != active[j]).double() for i, j in pairs])
    return differ.mean(0).reshape(active.shape[1], -1).mean(1)


def activations(model: Net) -> dict[str, Tensor]:
    """What the ReLUs along each group give."""
    with torch.no_grad():
        one = torch.relu(model.bn1(model.conv1(DATA)))
        middle = torch.relu(model.bn2(model.conv2(one)))
        stream = torch.relu(one + model.bn3(model.conv3(middle)))
        hidden = torch.relu(model.fc1(nn.functional.avg_pool2d(stream, 4).flatten(1)))
    return {"one": one, "middle": middle, "stream": stream, "hidden": hidden}


def test_expressiveness_is_the_mean_pairwise_disagreement(model: Net, scene: Scene) -> None:
    scores = Expressiveness(BATCHES).scores(scene)
    found = activations(model)
    # rounding of float64
    assert torch.allclose(scores[CONV2][0], pairwise(found["middle"] > 0), rtol=0, atol=1e-12)
    assert torch.allclose(scores[FC1][0], pairwise(found["hidden"] > 0), rtol=0, atol=1e-12)
    both = (pairwise(found["one"] > 0) + pairwise(found["stream"] > 0)) / 2
    assert torch.allclose(scores[STREAM][0], both, rtol=0, atol=1e-12)
    assert float(scores[CONV2].max()) > float(scores[CONV2].min()) + 0.05


def test_counts_add_up_and_do_not_grow(scene: Scene) -> None:
    whole = Expressiveness([(DATA,)]).count(scene)
    parts = [Expressiveness([batch]).count(scene) for batch in BATCHES]
    together = parts[0] + parts[1]
    assert together.examples == whole.examples == 9
    assert all(torch.equal(together.active[name], whole.active[name]) for name in whole.active)
    per_example = sum(tensor.numel() for tensor in whole.active.values())
    assert per_example == sum(tensor.numel() for tensor in parts[0].active.values())


def test_a_threshold_moves_what_is_active(model: Net, scene: Scene) -> None:
    scores = Expressiveness(BATCHES, threshold=0.5).scores(scene)
    wanted = pairwise(activations(model)["middle"] > 0.5)
    assert torch.allclose(scores[CONV2][0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("function", [nn.functional.silu, nn.functional.gelu])
def test_smooth_activations_are_taken_by_their_sign(function: Callable[[Tensor], Tensor]) -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc2(function(self.fc1(x)))
            return y

    torch.manual_seed(1)
    model, data = Smooth(), torch.randn(20, 6)
    scores = Expressiveness([(data,)]).scores(scene_of(model, (data,)))
    with torch.no_grad():
        wanted = pairwise(model.fc1(data) > 0)
    assert torch.allclose(scores[FC1][0], wanted, rtol=0, atol=1e-12)


def test_a_dead_channel_and_a_constant_one_say_nothing(scene: Scene, model: Net) -> None:
    with torch.no_grad():
        old = model.bn2.bias[:2].clone()
        model.bn2.bias[0], model.bn2.bias[1] = -100.0, 100.0
    scores = Expressiveness(BATCHES).scores(scene)[CONV2][0]
    with torch.no_grad():
        model.bn2.bias[:2] = old
    assert scores[:2].tolist() == [0.0, 0.0]
    assert float(scores[2:].max()) > 0.1


def test_noise_needs_no_data_and_is_the_same_twice(scene: Scene) -> None:
    one, other = (Expressiveness(Noise(16, seed=3)).scores(scene) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one[CONV2], Expressiveness(Noise(16, seed=4)).scores(scene)[CONV2])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "was given 0"),
        ([(DATA[:1],)], "was given 1"),
        ([(DATA * float("nan"),)], "not finite"),
    ],
)
def test_unusable_data_are_refused(scene: Scene, batches: list[tuple[Tensor]], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        Expressiveness(batches).scores(scene)


def test_magnitude_sums_over_all_tied_weights(model: Net, scene: Scene) -> None:
    with torch.no_grad():
        one = [model.conv2.weight, model.conv3.weight.transpose(0, 1)]
        absolute = sum(w.double().abs().flatten(1).sum(1) for w in one)
        squared = sum(w.double().square().flatten(1).sum(1) for w in one)
        stream = [model.conv1.weight, model.conv3.weight, model.conv2.weight.transpose(0, 1)]
        stream += [model.fc1.weight.unflatten(1, (8, 4)).transpose(0, 1)]
        whole = sum(w.double().abs().flatten(1).sum(1) for w in stream)
    assert isinstance(absolute, Tensor)
    assert isinstance(squared, Tensor)
    assert isinstance(whole, Tensor)
    assert torch.allclose(Magnitude(1).scores(scene)[CONV2][0], absolute, rtol=1e-12)
    assert torch.allclose(Magnitude(2).scores(scene)[CONV2][0], squared.sqrt(), rtol=1e-12)
    assert torch.allclose(Magnitude(1).scores(scene)[STREAM][0], whole, rtol=1e-12)


def test_batch_norm_scales_are_averaged_and_linear_layers_fall_back(model: Net, scene: Scene) -> None:
    scores = BatchNormScale().scores(scene)
    assert torch.allclose(scores[CONV2][0], model.bn2.weight.detach().double().abs())
    mean = (model.bn1.weight.detach().double().abs() + model.bn3.weight.detach().double().abs()) / 2
    assert torch.allclose(scores[STREAM][0], mean)
    assert torch.equal(scores[FC1], relative(Magnitude().scores(scene)[FC1]))


def test_taylor_sums_weight_times_gradient(model: Net, scene: Scene) -> None:
    labels = torch.arange(9) % 5
    batches = [(DATA[:4], labels[:4]), (DATA[4:], labels[4:])]

    def loss(called: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(called(batch[0]), batch[1])

    scores = Taylor(batches, loss).scores(scene)[FC1][0]
    wanted = torch.zeros(10, dtype=torch.float64)
    for batch in batches:
        weights = [model.fc1.weight, model.fc1.bias, model.fc2.weight]
        gradients = torch.autograd.grad(loss(model, batch), weights)
        products = [(w * g).detach().abs().double() for w, g in zip(weights, gradients, strict=True)]
        wanted += (products[0].sum(1) + products[1] + products[2].sum(0)) / 2
    assert torch.allclose(scores, wanted, rtol=1e-4)  # float32 sums, in another order
    assert all(p.grad is None for p in model.parameters())


def test_hybrid_mixes_relative_scores(scene: Scene) -> None:
    mixed = Hybrid(0.25, Expressiveness(BATCHES), Magnitude(1)).scores(scene)
    one, other = Magnitude(1).scores(scene)[CONV2], Expressiveness(BATCHES).scores(scene)[CONV2]
    assert torch.allclose(mixed[CONV2], 0.25 * one / one.mean() + 0.75 * other / other.mean())
    with pytest.raises(ShrinkError, match="a = 2"):
        Hybrid(2.0, Random())


def test_a_new_criterion_is_a_small_class(model: Net) -> None:
    class First:
        """Keeps the first members."""

        def scores(self, scene: Scene) -> dict[str, Tensor]:
            return {g.name: torch.arange(g.size, 0, -1.0).expand(g.repeats, -1) for g in scene.groups}

    criterion: Criterion = First()
    small = shrink(capture(model, (X,)), criterion=criterion, fraction_removed=0.5, ranking="layer")
    removed = {group.name: group.removed for group in small.plan.rounds[0].groups}
    assert removed[CONV2] == (tuple(range(6, 12)),)


def test_a_criterion_that_gives_nonsense_is_refused(model: Net) -> None:
    class Nonsense:
        def scores(self, scene: Scene) -> dict[str, Tensor]:
            return {group.name: torch.full((group.repeats, group.size), torch.nan) for group in scene.groups}

    with pytest.raises(ShrinkError, match="no finite scores of shape"):
        shrink(capture(model, (X,)), criterion=Nonsense(), fraction_removed=0.5)


class Grouped(nn.Module):
    """A grouped convolution: two groups of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x)))))
        return y


def test_members_are_scored_for_each_index_of_the_outer_group() -> None:
    model = Grouped()
    scene = scene_of(model, (X,))
    inner = next(group for group in scene.groups if group.repeats == 2 and "a.weight" in group.name)
    outer = next(group for group in scene.groups if group.size == 2)
    with torch.no_grad():
        own = model.a.weight.double().abs().flatten(1).sum(1)
        read = model.b.weight.double().abs().unflatten(0, (2, 4)).sum((1, 3, 4)).flatten()
    scores = Magnitude(1).scores(scene)
    assert torch.allclose(scores[inner.name].flatten(), own + read, rtol=1e-12)
    with torch.no_grad():
        blocks = sum(
            w.double().abs().unflatten(0, (2, 4)).flatten(1).sum(1)
            for w in (model.a.weight, model.b.weight, model.c.weight.transpose(0, 1))
        )
    assert isinstance(blocks, Tensor)
    assert torch.allclose(scores[outer.name].flatten(), blocks, rtol=1e-12)
