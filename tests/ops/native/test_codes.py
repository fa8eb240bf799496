"""Codes of weights: what kernels prove by them changes no bit of a result, whatever weights and inputs are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.errors import KernelError
from exprune_fx.ops import codes, native
from exprune_fx.ops.codes import Codes, blocks_of, code_ends
from exprune_fx.ops.native.fake_site import SQUARES
from tests.ops.native import cases
from tests.ops.native.cases import Arguments, Linear

OPERATORS = ("staged_linear_relu", "staged_ffn", "staged_gated_ffn")
WIDE = Linear(terms=2061, out=300, rows=(1,), stages=(257,), guard="calibrated", hidden_out=70, sparse=True)
LARGE = {
    "calibrated": WIDE,
    "two stages": replace(WIDE, stages=(257, 700), guard="threshold", number=0.001),
    "in blocks": replace(WIDE, terms=229, block=9, stages=(30,)),
    "norms": replace(WIDE, guard="bound", shrink=0.1),
    "squares": replace(WIDE, guard="stats_test", number=-0.5),
    "principal": replace(WIDE, principal=True, stages=(130,)),
    "no head": replace(WIDE, guard="none", stages=()),
    "no head, four rows, squared": replace(WIDE, guard="none", stages=(), rows=(4,), activation="relu_squared"),
    "bfloat16": replace(WIDE, dtype=torch.bfloat16),
    "float16, relu6": replace(WIDE, dtype=torch.float16, activation="relu6", guard="none", stages=()),
}


def named(operator: str, arguments: Arguments) -> dict[str, Any]:
    schema = getattr(torch.ops.exprune, operator).default._schema
    return {argument.name: value for argument, value in zip(schema.arguments, arguments, strict=False)}


def codes_for(given: dict[str, Any]) -> Codes:
    by_codes = given["down"] is None and given["guard"] not in SQUARES
    stages = [stage * given["block"] for stage in given["stages"]] if by_codes else []
    return Codes.of(given["weight"], code_ends(given["weight"].shape[1], stages))


def both(operator: str, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Without codes, and with them."""
    given = named(operator, arguments)
    made = codes_for(given)
    call = getattr(torch.ops.exprune, operator)
    return call(**given), call(**given, codes=made.codes, code_numbers=made.numbers, code_slack=made.slack)


def require_same_bits(operator: str, arguments: Arguments) -> Tensor:
    plain, coded = both(operator, arguments)
    assert torch.equal(plain.isnan(), coded.isnan())
    assert torch.equal(plain.nan_to_num(), coded.nan_to_num()), f"{operator}: {int((plain != coded).sum())} differ"
    return coded


@given(case=cases.linears(), few=st.integers(1, 4), scale=st.sampled_from([1.0, 1e-30, 1e-8, 1e6, 1e30]))
@settings(
    max_examples=min(30, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.usefixtures("isa")
def test_a_call_with_codes_returns_the_same_bits(case: Linear, few: int, scale: float) -> None:
    for operator in OPERATORS:
        x, *rest = replace(case, rows=(few,)).call(operator)
        result = require_same_bits(operator, ((x * scale).to(x.dtype), *rest))
    event("nothing is zero" if (result != 0).all() else "some are zero")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", LARGE)
def test_large_layers_return_the_same_bits(name: str, operator: str) -> None:
    for seed in range(2):
        require_same_bits(operator, replace(LARGE[name], seed=seed).call(operator))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", ["calibrated", "no head"])
def test_thresholds_and_zeros_that_rounding_decides_are_decided_as_without_codes(name: str) -> None:
    """Every neuron's pre-activation, and its head's sum, within some roundings of what decides it."""
    given = named("staged_linear_relu", replace(LARGE[name], bias=True).arguments())
    x, weight = given["x"], given["weight"]
    near = torch.linspace(-4, 4, weight.shape[0]).mul(2.0**-24).add(1.0)
    given["bias"] = -(x @ weight.T)[0] * near
    if given["limits"] is not None:
        seen = given["stages"][0]
        given["limits"] = ((x[:, :seen] @ weight[:, :seen].T)[0] + given["bias"]).mul(near.flip(0)).view(1, -1)
    result = require_same_bits("staged_linear_relu", tuple(given.values()))
    assert 0 < int((result != 0).sum()) < result.numel()


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_what_is_not_finite_is_computed_as_without_codes(where: str, bad: float) -> None:
    for name in ("calibrated", "no head"):
        given = named("staged_linear_relu", LARGE[name].arguments())
        given[where] = given[where].clone()
        given[where].view(-1)[::97] = bad
        require_same_bits("staged_linear_relu", tuple(given.values()))


@pytest.mark.usefixtures("isa")
def test_outliers_and_rows_of_zeros_are_no_danger() -> None:
    given = named("staged_linear_relu", LARGE["calibrated"].arguments())
    given["weight"] = given["weight"].clone()
    given["weight"][::7] = 0.0
    given["weight"][1::7, 5] = 1e4  # all other codes of these rows are zero
    given["x"] = given["x"].clone()
    given["x"][:, 300] = 1e5
    require_same_bits("staged_linear_relu", tuple(given.values()))
    given["x"] = torch.zeros_like(given["x"])
    require_same_bits("staged_linear_relu", tuple(given.values()))


@given(st.integers(1, 9), st.integers(1, 700), st.integers(0, 2**31 - 1))
def test_codes_and_their_norms_bound_every_product(out: int, features: int, seed: int) -> None:
    """The interval that a kernel takes holds the true product, in float64 and of the codes as they are stored."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features, generator=generator) * torch.rand(out, 1, generator=generator).exp()
    x = torch.randn(features, generator=generator).double()
    ends = code_ends(features, [features // 3] if features >= 3 else [])
    made = Codes.of(weight, ends)
    starts = [0, *ends[:-1]]
    segments, at = [], 0
    for start, end in zip(starts, ends, strict=True):
        size = out * (end - start)
        segments.append(made.codes[at : at + size].view(out, end - start))
        at += size
    assert at + 64 == made.codes.numel()
    scale, *norms = made.numbers.double()
    estimate = scale * (torch.cat(segments, 1).double() @ x)
    error = sum(norm * x[first:last].norm() for norm, (first, last) in zip(norms, blocks_of(ends), strict=True))
    truth = weight.double() @ x
    of_float64 = 1e-13 * weight.double().norm(dim=1) * x.norm()  # 700 terms: with one term the error itself is as small
    assert ((truth - estimate).abs() <= error + of_float64).all()


def test_codes_do_not_depend_on_how_many_rows_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 300)
    weight[5, 3], weight[7] = torch.inf, 0.0
    whole = Codes.of(weight, [40, 300])
    monkeypatch.setattr(codes, "_NUMBERS_AT_ONCE", 3000)
    for one, other in zip(vars(whole).values(), vars(Codes.of(weight, [40, 300])).values(), strict=True):
        assert torch.equal(one, other)


def test_wrong_codes_are_refused_where_the_graph_is_traced() -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    given = named("staged_linear_relu", Linear(terms=40, out=20, rows=(1,)).arguments())
    made = codes_for(given)
    right = {"codes": made.codes, "code_numbers": made.numbers, "code_slack": made.slack}
    wrong: list[dict[str, Tensor | None]] = [
        {"code_slack": None}, {"codes": made.codes[1:]}, {"codes": made.codes.float()},
        {"code_numbers": made.numbers[:1]}, {"code_numbers": made.numbers.double()}, {"code_slack": made.slack[:2]},
    ]  # fmt: skip
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        torch.ops.exprune.staged_linear_relu(**given, **right)
        for change in wrong:
            with pytest.raises(KernelError, match="code"):
                torch.ops.exprune.staged_linear_relu(**given, **{**right, **change})
