"""The backend reads the parameters of the instance that is called, as they are at that moment, frozen or not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.pipeline import transform
from tests.backend.models import Blocks, SmallCnn, captured, compiled_by, images, plan_of, randomised, tokens
from tests.backend.test_ways_in import Inner

MODELS: dict[str, tuple[type[nn.Module], Any]] = {"cnn": (SmallCnn, images), "blocks": (Blocks, lambda n: tokens(n, 5))}


CASES = [("cnn", "prefix"), ("blocks", "prefix"), ("blocks", "principal"), ("cnn", "coded")]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(("name", "head"), CASES)
@torch.no_grad()
def test_instances_updates_and_loaded_weights(name: str, head: str, freeze: bool) -> None:
    kind, data = MODELS[name]
    model, x = randomised(kind()), data(6)
    plan = plan_of(model, data(32), head=head)
    assert plan.staged
    other = randomised(copy.deepcopy(model), seed=5)
    inner = Inner()
    options = {"plan": plan, "freeze": freeze, "inner": inner}
    ours = {id(each): (compiled_by(each, options), captured(each, data(4))) for each in (model, other)}

    def check(each: nn.Module) -> None:
        compiled, gm = ours[id(each)]
        expected, dense, found = transform(gm, plan)(x), each(x), compiled(x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # float32 sums in another order
        assert (found - dense).abs().max() > 1e-3  # the plan does change this model: the dense one would be seen

    for each in (model, other, model):
        check(each)
    for parameter in model.parameters():
        parameter.mul_(1.1)
    check(model)
    model.load_state_dict(other.state_dict())
    check(model)
    assert torch.equal(ours[id(model)][0](x), ours[id(other)][0](x))
    assert inner.staged == [True]  # one compiled graph served them all
