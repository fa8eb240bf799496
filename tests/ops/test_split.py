"""Weights in 24 bits: how far off they are, and which weights are not split."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exprune_fx.ops import split
from exprune_fx.ops.split import rest_of, split_of, splits_well


@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**31 - 1), st.sampled_from([1e-15, 1e-3, 1.0, 1e15]))
def test_every_weight_is_held_to_the_last_bits_of_the_largest_of_its_row(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    made = split_of(weight.T.contiguous().T)
    assert made.codes.is_contiguous()
    assert made.rest.is_contiguous()
    again = made.scales.double().unsqueeze(1) * (made.codes.double() + made.rest.double() / 2**16)
    off = (again - weight.double()).abs().amax(1)
    # Half a unit; a whole and a half for a rest of 2^15, which 16 bits do not hold. Scales are rounded to float32.
    assert (off <= 3.03 * 2**-24 * weight.double().abs().amax(1)).all()
    assert splits_well(weight)


def test_rows_of_zeros_and_weights_of_three_dimensions_and_more() -> None:
    weight = torch.randn(3, 4, 2, 2)
    weight[1] = 0.0
    flat = split_of(weight.flatten(1))
    assert not flat.codes[1].any()
    assert not flat.rest[1].any()
    assert splits_well(weight.flatten(1))
    assert torch.equal(rest_of(weight, flat.codes.view_as(weight), flat.scales).flatten(1), flat.rest)


def test_rests_do_not_depend_on_how_many_rows_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 33)
    whole = split_of(weight)
    monkeypatch.setattr(split, "_NUMBERS_AT_ONCE", 66)
    assert torch.equal(split_of(weight).rest, whole.rest)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e4, 1e30], ids=str)
def test_rows_that_24_bits_do_not_hold_well(bad: float) -> None:
    weight = torch.randn(5, 8192)
    weight[3, 17] = bad
    assert not splits_well(weight)


def test_rows_so_small_that_their_scale_would_lose_bits() -> None:
    assert not splits_well(torch.randn(2, 8) * 1e-25)
