"""Models are compiled as their names say: frozen really means frozen, and one graph is one graph."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.bench.micro import FeedForward
from exprune_fx.compiling import INNER, compiled
from exprune_fx.errors import ExpruneError

X = torch.ones(1, 16)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(("inner", "tensors"), [("inductor", 5), ("inductor_freezing", 1)])
def test_a_frozen_graph_takes_no_parameter(inner: str, tensors: int) -> None:
    model = FeedForward(16).eval()
    column = compiled(model, inner, inner, (X,))
    assert column.backend is not None
    assert column.backend.tensors == tensors
    with torch.no_grad():
        torch.testing.assert_close(column.call(X), model(X))
    column.check()


def test_options_alone_freeze_nothing() -> None:
    """Why columns tell Dynamo too; should this fail, torch has mended it."""
    frozen = compiled(FeedForward(16).eval(), "frozen", "inductor_freezing", (X,))
    assert frozen.backend is not None
    assert frozen.backend.tensors == 1
    backend = type(frozen.backend)({"freezing": True})
    with torch.no_grad():
        torch.compile(FeedForward(16).eval(), backend=backend)(X)
    assert backend.tensors == 5


def test_a_column_that_was_compiled_again_is_found_out() -> None:
    column = compiled(FeedForward(16).eval(), "inductor", "inductor", (X,))
    with torch.no_grad():
        column.call(torch.ones(3, 16))
    with pytest.raises(ExpruneError, match="inductor was compiled 2 times"):
        column.check()


def test_the_model_itself_is_left_alone() -> None:
    model = FeedForward(16).eval()
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    compiled(model, "frozen", "inductor_freezing", (X,))
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before


def test_what_cannot_be_compiled_is_named() -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(7, 7)  # it has 16 elements

    with pytest.raises(ExpruneError, match="inductor could not be compiled"):
        compiled(Broken(), "inductor", "inductor", (X,))


def test_settings_build_on_one_another() -> None:
    assert INNER["inductor"] == {}
    assert INNER["inductor_freezing"].items() < INNER["inductor_max_autotune"].items()
