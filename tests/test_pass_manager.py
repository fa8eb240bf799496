from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn
from torch.export import Dim

from exprune_fx.errors import CaptureError, PassError, VerifyError
from exprune_fx.graph import capture, copy_graph_module, python_text
from exprune_fx.graph.edits import recompile
from exprune_fx.pass_manager import Pass, PassResult, describe, parse, run_pipeline
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from tests.graph.models import ResidualCnn, randomise

aten = torch.ops.aten
NORMALISE: tuple[Pass, ...] = (DropNoOpsPass(), FoldBatchNormPass(), CommuteReluMaxPoolPass())


@dataclass(frozen=True)
class OptionsPass:
    """Does nothing; has options of every kind that has a text form."""

    name: ClassVar[str] = "with-options"
    eps_floor: float = 1e-5
    count: int = 3
    on: bool = True
    label: str = ""
    sizes: tuple[Any, ...] = ()
    maybe: int | None = None

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        return PassResult(gm, changed=False, edits=0)


@dataclass(frozen=True)
class MisbehavingPass:
    """Does what no pass may do."""

    name: ClassVar[str] = "misbehaving"
    how: str = ""

    def __call__(self, gm: fx.GraphModule) -> Any:
        if self.how == "raises":
            raise ZeroDivisionError("by zero")
        if self.how == "raises ours":
            raise CaptureError("no good")
        if self.how == "gives none":
            return None
        if self.how == "changes its input":
            relu = next(n for n in gm.graph.nodes if n.target is aten.relu.default)
            relu.target = aten.neg.default
        if self.how == "writes to a tensor":
            with torch.no_grad():
                gm.get_parameter("head.bias").add_(1)
        if self.how == "breaks the graph":
            gm = copy_graph_module(gm)
            next(n for n in gm.graph.nodes if n.target is aten.relu.default).target = aten.relu_.default
            recompile(gm)
        return PassResult(gm, changed=True, edits=1)


REGISTRY: dict[str, type[Pass]] = {
    cls.name: cls for cls in (DropNoOpsPass, FoldBatchNormPass, CommuteReluMaxPoolPass, OptionsPass, MisbehavingPass)
}


@pytest.fixture
def captured() -> fx.GraphModule:
    return capture(randomise(ResidualCnn()), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: Dim.AUTO},))


def test_pipeline_computes_the_same_and_leaves_its_input(
    captured: fx.GraphModule, caplog: pytest.LogCaptureFixture
) -> None:
    text = python_text(captured)
    with caplog.at_level(logging.DEBUG, logger="exprune_fx.pass_manager"):
        result = run_pipeline(captured, NORMALISE)
    x = torch.randn(5, 3, 8, 8)
    # float32, sums of 72 terms of order one; three layers.
    torch.testing.assert_close(result(x), captured(x), rtol=1e-3, atol=1e-3)
    assert python_text(captured) == text
    assert not any(n.target in (aten.batch_norm.default, aten.clone.default) for n in result.graph.nodes)
    logged = [r.getMessage() for r in caplog.records if r.name == "exprune_fx.pass_manager"]
    assert logged == [
        "drop-no-ops: changed=True, edits=1",
        "fold-batch-norm: changed=True, edits=2",
        "commute-relu-max-pool: changed=False, edits=0",
    ]


def test_second_run_changes_nothing(captured: fx.GraphModule) -> None:
    once = run_pipeline(captured, NORMALISE)
    assert run_pipeline(once, NORMALISE) is once


def test_the_empty_pipeline_gives_its_input(captured: fx.GraphModule) -> None:
    assert run_pipeline(captured, ()) is captured


def test_a_broken_input_is_refused_before_the_first_pass(captured: fx.GraphModule) -> None:
    broken = MisbehavingPass("breaks the graph")(captured).graph_module
    with pytest.raises(VerifyError, match="check 'no-mutation' fails: "):
        run_pipeline(broken, NORMALISE)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("raises", PassError, "'misbehaving' failed: ZeroDivisionError"),
        ("raises ours", CaptureError, "no good"),
        ("gives none", PassError, "NoneType, not a PassResult"),
        ("changes its input", PassError, "'misbehaving' changed the graph"),
        ("writes to a tensor", PassError, "'misbehaving' changed the graph or a tensor"),
        ("breaks the graph", VerifyError, "after pass 'misbehaving'.*block.relu"),
    ],
)
def test_what_a_pass_may_not_do(captured: fx.GraphModule, how: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run_pipeline(captured, (DropNoOpsPass(), MisbehavingPass(how)))
    if how == "raises":
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    if how == "raises ours":
        assert caught.value.__notes__ == ["raised in pass 'misbehaving'"]


def test_a_pass_whose_option_has_no_text_form_still_runs(captured: fx.GraphModule) -> None:
    assert run_pipeline(captured, (OptionsPass(sizes=(nn.ReLU(),)),)) is captured


def test_verification_between_can_be_left_out(captured: fx.GraphModule) -> None:
    run_pipeline(captured, (MisbehavingPass("breaks the graph"),), verify_between=False)


def test_text_form() -> None:
    assert describe(NORMALISE) == "drop-no-ops,fold-batch-norm,commute-relu-max-pool"
    assert describe((OptionsPass(eps_floor=0.0, label="a,b"),)) == "with-options{eps-floor=0.0,label='a,b'}"
    assert parse(" drop-no-ops , with-options{ count = 4 } ", REGISTRY) == (DropNoOpsPass(), OptionsPass(count=4))
    assert parse("", REGISTRY) == ()


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
options = st.builds(
    OptionsPass,
    eps_floor=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(),
    on=st.booleans(),
    label=st.text(),
    sizes=st.lists(literals, max_size=3).map(tuple),
    maybe=st.none() | st.integers(),
)


@given(st.lists(options | st.sampled_from(NORMALISE), max_size=4).map(tuple))
def test_text_form_parses_back(passes: tuple[Pass, ...]) -> None:
    assert parse(describe(passes), REGISTRY) == passes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no-such-pass", "no pass 'no-such-pass'"),
        ("Drop", "not a pass"),
        ("drop-no-ops{", "not a pass"),
        ("drop-no-ops,,fold-batch-norm", "not a pass"),
        ("drop-no-ops{eps=1}", "not an option of pass 'drop-no-ops'"),
        ("with-options{count}", "not an option"),
        ("with-options{count=}", "not a Python literal"),
        ("with-options{count=open('x')}", "not a Python literal"),
    ],
)
def test_malformed_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        parse(text, REGISTRY)


def test_an_option_without_text_form_is_refused() -> None:
    with pytest.raises(PassError, match="not a Python literal"):
        describe((OptionsPass(sizes=(nn.ReLU(),)),))
