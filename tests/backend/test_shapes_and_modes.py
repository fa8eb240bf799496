"""Sizes change, modes change, graphs break: the outputs are those of the model."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.guards import Bound
from exprune_fx.pipeline import transform
from tests.backend.models import Block, Blocks, SmallCnn, captured, compiled_by, images, plan_of, randomised, tokens
from tests.backend.test_ways_in import Inner

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # sums of up to 256 terms in another order


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_batches_of_any_size_compile_three_graphs_at_most(freeze: bool) -> None:
    model, inner = randomised(SmallCnn()), Inner()
    plan = plan_of(model, images(32))
    compiled = compiled_by(model, {"plan": plan, "inner": inner, "freeze": freeze})
    expected = transform(captured(model, images(4)), plan)
    for count in (1, 3, 5, 7):
        x = images(count, seed=count)
        _close(compiled(x), expected(x))
    assert inner.staged in ([True] * 2, [True] * 3)


@torch.no_grad()
def test_sequences_of_1_to_64_compile_three_graphs_at_most() -> None:
    model, inner = randomised(Blocks()), Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner})
    for length in range(1, 65):
        x = tokens(2, length, seed=length)
        _close(compiled(x), model(x))
    assert inner.staged in ([True] * 2, [True] * 3)


@torch.no_grad()
def test_dynamic_from_the_start() -> None:
    model, inner = randomised(SmallCnn()), Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner}, dynamic=True)
    for count in (2, 3, 5):
        _close(compiled(images(count)), model(images(count)))
    assert inner.staged == [True]


MODES: dict[str, tuple[Any, torch.dtype]] = {
    "no_grad": (torch.no_grad, torch.float32),
    "no_grad, bfloat16": (torch.no_grad, torch.bfloat16),
    "no_grad, float16": (torch.no_grad, torch.float16),
    "inference_mode": (torch.inference_mode, torch.float32),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), torch.float32),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "data"), [(SmallCnn, images), (Blocks, lambda n: tokens(n, 5))])
def test_modes_and_dtypes(kind: type[nn.Module], data: Any, mode: str) -> None:
    context, dtype = MODES[mode]
    model, x, inner = randomised(kind()).to(dtype), data(4).to(dtype), Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner})
    with torch.no_grad(), context():
        _close(compiled(x), model(x))
    staged = [node for node in inner.graphs[0].graph.nodes if "staged_" in str(node.target)]
    # Without values, no batch norm is folded into float16: its sites stay dense.
    assert len(staged) == {"Blocks": 2, "SmallCnn": 2 if dtype == torch.float16 else 4}[kind.__name__]


class Mixed(nn.Module):
    """Autocast inside, switched off again for one layer whose weight is read under autocast too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(12, 16)
        self.fc2 = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.fc2(self.fc1(x).relu()).relu()
            with torch.autocast("cpu", enabled=False):
                z: torch.Tensor = self.fc2(y.float()).relu()
        return z


@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_autocast_inside_the_model(freeze: bool) -> None:
    model, x, inner = randomised(Mixed()), tokens(4, 3), Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner, "freeze": freeze})
    expected = model(x)
    found = compiled(x)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)  # two layers in bfloat16
    assert sum("staged_" in str(node.target) for node in inner.graphs[0].graph.nodes) == 3


class Broken(nn.Module):
    """Two blocks with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.first = Block(16, 32)
        self.second = Block(16, 24)
        self.head = nn.Linear(16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.embed(x))
        torch._dynamo.graph_break()
        out: torch.Tensor = self.head(self.second(x))
        return out


class Unbroken(Broken):
    """The same in one piece."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.second(self.first(self.embed(x))))
        return out


@pytest.mark.parametrize("head", ["prefix", "principal"])
@pytest.mark.parametrize("freeze", [False, True])
@torch.no_grad()
def test_each_part_of_a_broken_graph_takes_what_is_its_own(
    head: str, freeze: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole, x, inner = randomised(Unbroken()), tokens(4, 5), Inner()
    plan = plan_of(whole, tokens(32, 5), head=head)
    assert [entry.head for entry in plan.sites] == [head, head]
    model = Broken().eval()
    model.load_state_dict(whole.state_dict())
    options = {"plan": plan, "inner": inner, "freeze": freeze}
    with caplog.at_level("INFO", logger="exprune_fx"):
        found = compiled_by(model, options)(x)
    if head == "principal":
        assert inner.staged == [True, True]
        _close(found, transform(captured(whole, x), plan)(x))
    else:  # the residual stream is reordered, and leaves the first part
        assert inner.staged == [False, False]
        assert "the plan" in caplog.text
        _close(found, model(x))


class Cached(nn.Module):
    """Writes into a buffer and into an argument, and returns views."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 12)
        self.register_buffer("seen", torch.zeros(12))

    def forward(self, x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.fc(x).relu_()
        self.seen += y.sum((0, 1))
        cache[:, 1:3] = y[:, :2]
        return y.transpose(0, 1), cache[0] * 2, x.view(-1, 12)


@torch.no_grad()
def test_writes_to_buffers_and_inputs_happen() -> None:
    model, other, inner = randomised(Cached()), randomised(Cached()), Inner()
    compiled = compiled_by(other, {"guard": Bound(), "inner": inner})
    buffer = other.seen
    for seed in (1, 2):
        x, caches = tokens(2, 4, seed), [torch.ones(2, 5, 12), torch.ones(2, 5, 12)]
        for found, expected in zip(compiled(x, caches[1]), model(x, caches[0]), strict=True):
            _close(found, expected)
        torch.testing.assert_close(caches[1], caches[0])
        torch.testing.assert_close(other.seen, model.seen)
    torch.testing.assert_close(buffer, other.seen)
    buffer.zero_()
    assert not other.seen.any()  # still the same memory
    assert inner.staged == [True]


@torch.no_grad()
def test_a_view_of_what_is_written_to_is_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    def write(x: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cache.add_(1)
        return model(x), cache[1:]

    model, inner, cache = randomised(Blocks()), Inner(), torch.zeros(4)
    view = compiled_by(write, {"guard": Bound(), "inner": inner})(tokens(2, 3), cache)[1]
    cache.add_(1)
    assert view.tolist() == [2.0] * 3
    assert inner.staged == [False]
    assert "a view of an input that it writes to" in caplog.text


@torch.no_grad()
def test_two_views_of_one_memory_that_is_written_to_are_left_to_the_inner_backend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def write(x: torch.Tensor, cache: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        cache.add_(1)
        out: torch.Tensor = model(x) + same.sum()
        return out

    model, inner = randomised(Blocks()), Inner()
    memory = torch.zeros(8)
    compiled = compiled_by(write, {"guard": Bound(), "inner": inner})
    with contextlib.suppress(NotImplementedError):
        compiled(tokens(2, 3), memory[:4], memory[2:])
    assert inner.staged == [False]
    assert "shares its memory" in caplog.text
