"""Weights in 24 bits: kernels that read them compute what the same weights give in float32, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.ops.codes import MOST_ROWS
from exprune_fx.ops.dominance import LARGEST_CODE
from exprune_fx.ops.native.fake_site import SQUARES
from exprune_fx.ops.split import rest_by_segments, split_of
from tests.ops.native import cases
from tests.ops.native.cases import Linear
from tests.ops.native.test_codes import LARGE, OPERATORS, codes_for, named

WHOLE = {name: case for name, case in LARGE.items() if case.dtype == torch.float32 and case.guard not in SQUARES}


def on_the_grid(weight: Tensor) -> Tensor:
    """A weight near this one that 24 bits hold exactly: multiples of 2^-16 of a power of two, whose code it is."""
    scale = (weight.abs().amax(1, keepdim=True) / LARGEST_CODE).clamp_min(1e-6).log2().ceil().exp2()
    steps = (weight / scale * 65536).round()
    steps = steps + (steps % 65536 == 32768)  # in the middle between two codes, where a rest may need 17 bits
    steps[:, 0] = LARGEST_CODE * 65536
    return steps / 65536 * scale


def arguments(case: Linear, operator: str) -> dict[str, Any]:
    """Of a call whose weights lie on the grid."""
    found = named(operator, case.call(operator))
    found["weight"] = on_the_grid(found["weight"])
    if case.packed and found["up"] is not None and found["down"] is None:  # the first stage's columns once more
        found["up"] = found["weight"][:, : case.stages[0] * case.block].contiguous()
    if "weight_out" in found:
        found["weight_out"] = on_the_grid(found["weight_out"].T.contiguous()).T
    return found


def tables(found: dict[str, Any], *, second: bool = True) -> dict[str, Tensor]:
    """Codes and rest of both weights, as the operators take them."""
    codes, weight = codes_for(found), found["weight"]
    by_codes = found["down"] is None
    ends = [*(stage * found["block"] for stage in found["stages"] if by_codes), weight.shape[1]]
    made = {"codes": codes.codes, "code_numbers": codes.numbers, "code_slack": codes.slack}
    made["code_rest"] = rest_by_segments(weight, codes.codes, codes.numbers[0], ends)
    if second and "weight_out" in found:
        out = split_of(found["weight_out"].T)
        made |= {"out_codes": out.codes, "out_scales": out.scales, "out_rest": out.rest}
    return made


def require_same_bits(operator: str, found: dict[str, Any], *, second: bool = True) -> Tensor:
    call = getattr(torch.ops.exprune, operator)
    plain: Tensor = call(**found)
    split = call(**found, **tables(found, second=second))
    assert torch.equal(plain, split), f"{operator}: {int((plain != split).sum())} differ"
    return plain


@given(case=cases.linears(), few=st.integers(1, MOST_ROWS))
@settings(
    max_examples=min(30, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.usefixtures("isa")
def test_weights_on_the_grid_give_the_bits_that_float32_gives(case: Linear, few: int) -> None:
    guard = "calibrated" if case.guard in SQUARES else case.guard
    case = replace(case, rows=(few,), dtype=torch.float32, guard=guard)
    for operator in OPERATORS:
        result = require_same_bits(operator, arguments(case, operator))
    event("nothing is zero" if (result != 0).all() else "some are zero")


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", WHOLE)
def test_large_layers_too(name: str, operator: str) -> None:
    found = arguments(WHOLE[name], operator)
    assert (require_same_bits(operator, found) != 0).any()
    require_same_bits(operator, found, second=False)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("operator", OPERATORS)
def test_other_weights_give_what_they_are_worth_in_float64(operator: str) -> None:
    """No head, so that nothing is decided by a threshold; weights as they come."""
    found = named(operator, replace(WHOLE["no head"], terms=1531, sparse=True).call(operator))
    wide = {key: value.double() for key, value in found.items() if isinstance(value, Tensor)}
    hidden = torch.relu(wide["x"] @ wide["weight"].T + wide["bias"])
    if operator == "staged_linear_relu":
        truth, size = hidden, wide["x"].abs() @ wide["weight"].abs().T
    else:
        if operator == "staged_gated_ffn":
            hidden = hidden * (wide["x"] @ wide["weight_value"].T + wide["bias_value"])
        truth = hidden @ wide["weight_out"].T + wide["bias_out"]
        size = hidden.abs() @ wide["weight_out"].abs().T
    split = getattr(torch.ops.exprune, operator)(**found, **tables(found))
    # Float32's own rounding of such sums, and of weights 2^-22 of the largest of their row, which four others' worth.
    assert ((split - truth).abs() <= 2**-18 * size.amax() + 1e-6).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": (MOST_ROWS + 1,)}, "few rows"),
        ({"dtype": torch.bfloat16}, "float32"),
        ({"guard": "stats_test", "number": -0.5}, "squares"),
    ],
)
@pytest.mark.usefixtures("isa")
def test_what_is_not_to_be_split_is_refused(changes: dict[str, Any], message: str) -> None:
    found = named("staged_ffn", replace(WHOLE["calibrated"], terms=96, stages=(8,), **changes).call("staged_ffn"))
    given_tables = tables({**found, "weight": found["weight"].float()}, second=False)
    if changes.get("guard"):
        codes = codes_for(found)
        given_tables |= {"codes": codes.codes, "code_numbers": codes.numbers}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.exprune.staged_ffn(**found, **given_tables)


def test_tables_of_a_second_weight_must_fit_it() -> None:
    found = arguments(replace(WHOLE["no head"], terms=64), "staged_ffn")
    made = tables(found)
    for wrong in ({"out_codes": made["out_codes"].T}, {"out_rest": made["out_rest"][:-1]}, {"out_scales": None}):
        with pytest.raises(RuntimeError, match="exprune"):
            torch.ops.exprune.staged_ffn(**found, **{**made, **wrong})
