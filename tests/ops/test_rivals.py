"""guard_pooled: against loops over windows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import exprune_fx.ops  # noqa: F401 - registers the operators

ops = torch.ops.exprune


def stopped_by_loops(h: Tensor, thresholds: Tensor, margins: Tensor, window: tuple[int, int], gone: Tensor) -> Tensor:
    """One neuron after another."""
    expected = torch.zeros_like(gone)
    rows, columns = window
    for n, j, y, x in itertools.product(*map(range, h.shape)):
        top, left = y // rows * rows, x // columns * columns
        if top + rows > h.shape[2] or left + columns > h.shape[3]:
            expected[n, j, y, x] = True
            continue
        places = itertools.product(range(top, top + rows), range(left, left + columns))
        rivals = [h[n, j, a, b].item() for a, b in places if not gone[n, j, a, b]]
        leader = max(rivals, default=-math.inf)
        value = h[n, j, y, x].item()
        expected[n, j, y, x] = value < thresholds[j].item() or value < leader - margins[j].item()
    return expected


@settings(max_examples=40, deadline=None)
@given(
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    space=st.tuples(st.integers(3, 7), st.integers(3, 7)),
    seed=st.integers(0, 999),
    known=st.booleans(),
    later=st.booleans(),
)
def test_who_cannot_win_stops(
    window: tuple[int, int], space: tuple[int, int], seed: int, known: bool, later: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # quarters: sums and differences are exact, and ties occur
    partial = (torch.randn(2, 3, *space, generator=generator) * 4).round() / 4
    constant = torch.tensor([0.25, 0.0, -0.5]).reshape(3, 1, 1) if known else None
    thresholds, margins = torch.tensor([-math.inf, 0.0, 0.5]), torch.tensor([0.0, 0.5, 3e38])
    gone = torch.rand(2, 3, *space, generator=generator) < 0.3
    found = ops.guard_pooled(
        partial, constant, thresholds.reshape(3, 1, 1), margins.reshape(3, 1, 1), list(window), gone if later else None
    )
    h = partial if constant is None else partial + constant
    before = gone if later else torch.zeros_like(gone)
    assert torch.equal(found, stopped_by_loops(h, thresholds, margins, window, before))


def test_whoever_leads_its_window_is_stopped_by_its_threshold_alone() -> None:
    h = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(2, 1, 1)
    stopped = ops.guard_pooled(h, None, zero - math.inf, zero, [2, 3])
    going = torch.nn.functional.max_pool2d((~stopped).double(), (2, 3)) * 6
    assert torch.equal(stopped.double().mean(), torch.tensor(5 / 6, dtype=torch.float64))
    assert torch.equal(going, torch.full_like(going, 6.0)), "one goes on in each window"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_goes_on(bad: float) -> None:
    h = torch.zeros(1, 1, 2, 2)
    h[0, 0, 1, 0] = bad
    one = torch.ones(1, 1, 1)
    assert not ops.guard_pooled(h, None, -one, one, [2, 2])[0, 0, 1, 0]


def test_a_decision_depends_on_its_own_image_alone() -> None:
    h = torch.randn(5, 3, 6, 4, generator=torch.Generator().manual_seed(1))
    numbers = (torch.full((3, 1, 1), -0.2), torch.full((3, 1, 1), 0.3))
    together = ops.guard_pooled(h, None, *numbers, [2, 2])
    alone = torch.cat([ops.guard_pooled(image[None], None, *numbers, [2, 2]) for image in h])
    assert torch.equal(together, alone)
