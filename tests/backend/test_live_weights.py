"""The backend reads the parameters of the instance that is called, as they are at that moment, frozen or not."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.backend import exprune, once
from exprune_fx.plan import Plan
from tests.backend.models import Blocks, SmallCnn, images, plan_of, randomised, tokens, transformed

MODELS = {"cnn": (SmallCnn, images), "blocks": (Blocks, lambda n: tokens(n, 5))}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    once.forget()
    yield
    torch._dynamo.reset()


def _close(model: nn.Module, compiled: Any, plan: Plan, x: torch.Tensor) -> None:
    with torch.no_grad():
        expected, dense, found = transformed(model, plan, x), model(x), compiled(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert (found - dense).abs().max() > 1e-3  # the plan does change this model: the dense one would be seen


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("head", ["prefix", "principal"])
@pytest.mark.parametrize("name", MODELS)
def test_instances_updates_and_loaded_weights(name: str, head: str, freeze: bool) -> None:
    kind, data = MODELS[name]
    model, x = randomised(kind()), data(6)
    plan = plan_of(model, data(32), head=head)
    assert plan.staged
    options = {"plan": plan, "freeze": freeze, "inner": "eager"}
    compiled = torch.compile(model, backend=exprune, options=options)
    _close(model, compiled, plan, x)

    other = randomised(copy.deepcopy(model), seed=5)
    again = torch.compile(other, backend=exprune, options=options)
    _close(other, again, plan, x)
    _close(model, compiled, plan, x)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    _close(model, compiled, plan, x)

    model.load_state_dict(other.state_dict())
    _close(model, compiled, plan, x)
    assert torch.equal(
        compiled(x) if not torch.is_grad_enabled() else torch.no_grad()(compiled)(x), torch.no_grad()(again)(x)
    )
