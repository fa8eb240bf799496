"""By name, as a callable, as a partial; what is said, and when the graph is handed on as it is."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from exprune_fx.backend import exprune
from exprune_fx.guards import Bound
from exprune_fx.ops import native
from tests.backend.models import Blocks, SmallCnn, compiled_by, images, plan_of, randomised, tokens

EAGER: dict[str, Any] = {"inner": "eager", "guard": Bound()}


class Inner:
    """An inner backend that runs the graph as it is, and remembers it."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        assert len(inputs) == sum(node.op == "placeholder" for node in gm.graph.nodes)
        self.graphs.append(gm)
        return gm.forward

    @property
    def staged(self) -> list[bool]:
        return ["exprune" in graph.code for graph in self.graphs]


def test_it_is_registered() -> None:
    assert "exprune" in torch._dynamo.list_backends()


@pytest.mark.parametrize("backend", ["exprune", exprune, functools.partial(exprune, options=EAGER)])
def test_by_name_as_a_callable_and_as_a_partial(backend: Any) -> None:
    model, x = randomised(Blocks()), tokens(2, 3)
    given: Any = {} if isinstance(backend, functools.partial) else {"options": EAGER}
    with torch.no_grad():
        compiled: Any = torch.compile(model, backend=backend, **given)
        torch.testing.assert_close(compiled(x), model(x))


def test_without_a_plan_it_says_how_to_calibrate_once_and_shows_every_site(caplog: pytest.LogCaptureFixture) -> None:
    model = compiled_by(randomised(Blocks()), EAGER)
    with caplog.at_level(logging.INFO, logger="exprune_fx"), torch.no_grad():
        model(tokens(2, 3))
        model(tokens(3, 3))
    said = [record.getMessage() for record in caplog.records]
    assert sum("calibrate(capture(model, args), batches)" in line for line in said) == 1
    sites = [line for line in said if line.startswith("site 'layers.0.fc1' [32, 16]: Bound() after 2, 4, 8 of 16")]
    assert len(sites) == 2  # one a graph


def _handed_on(model: nn.Module, x: torch.Tensor, options: dict[str, Any]) -> Inner:
    inner = Inner()
    compiled = compiled_by(model, {**options, "inner": inner})
    compiled(x)
    return inner


def test_gradients_are_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    model, x = randomised(SmallCnn()).train(), images(4)
    inner = Inner()
    compiled = compiled_by(model, {"guard": Bound(), "inner": inner})
    out = compiled(x)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert inner.staged == [False]
    compiled(images(5))
    assert sum("gradients are enabled" in record.getMessage() for record in caplog.records) == 1
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(compiled(x), model(x))
    assert inner.staged[-1]


@torch.no_grad()
def test_training_mode_is_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    assert _handed_on(randomised(SmallCnn()).train(), images(4), {"guard": Bound()}).staged == [False]
    assert "training mode" in caplog.text


@torch.no_grad()
def test_a_graph_without_sites_is_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(12, 4), nn.GELU(), nn.Linear(4, 3)).eval()
    assert _handed_on(model, tokens(2, 3), {}).staged == [False]
    assert "it has no site" in caplog.text


@torch.no_grad()
def test_a_plan_that_does_not_fit_is_refused_where_the_user_sees_it() -> None:
    plan = plan_of(randomised(Blocks()), tokens(32, 5))
    with pytest.raises(BackendCompilerFailed, match=r"this plan was made for another model(.|\n)*conv1"):
        compiled_by(randomised(SmallCnn()), {"plan": plan, "inner": "eager"})(images(2))


@torch.no_grad()
def test_what_cannot_be_traced_is_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 12)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(x).relu()
            out: torch.Tensor = torch.cond(y.sum() > 0, lambda v: v + 1, lambda v: v - 1, (y,))
            return out

    assert _handed_on(Cond().eval(), tokens(2, 3), {"guard": Bound()}).staged == [False]
    assert "it cannot be staged" in caplog.text


@torch.no_grad()
def test_parameters_that_dynamo_froze_are_left_to_the_inner_backend(caplog: pytest.LogCaptureFixture) -> None:
    with torch._dynamo.config.patch(prepare_freezing=True):
        assert _handed_on(randomised(Blocks()), tokens(2, 3), {"guard": Bound()}).staged == [False]
    assert "Dynamo froze its parameters" in caplog.text


@torch.no_grad()
def test_without_kernels_only_what_was_asked_for_is_staged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    assert _handed_on(randomised(Blocks()), tokens(2, 3), {}).staged == [False]
    assert "there are no native kernels" in caplog.text
    torch._dynamo.reset()
    assert _handed_on(randomised(Blocks()), tokens(2, 3), {"guard": Bound()}).staged == [True]


@torch.no_grad()
def test_what_no_kernel_holds_stays_dense_unless_it_was_asked_for() -> None:
    model = randomised(nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU()))
    x = torch.randn(2, 4, 12)
    assert _handed_on(model, x, {}).staged == [False]
    torch._dynamo.reset()
    assert _handed_on(model, x, {"stages": (0.5,)}).staged == [True]
    torch._dynamo.reset()
    assert _handed_on(model, x, {"stages": (0.5,), "objective": "latency"}).staged == [False]
