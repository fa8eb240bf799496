"""What derives from parameters is kept for each set of them, and made anew when one changes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import fx, nn

from exprune_fx.backend.frozen import Frozen


class Twice(nn.Module):
    """Input 0 is the example, 1 and 2 are parameters, of which 1 is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, _: Any, weight: torch.Tensor, __: Any) -> tuple[torch.Tensor]:
        self.calls += 1
        return (2 * weight,)


@pytest.fixture
def frozen() -> Frozen:
    derivation: Any = Twice()
    return Frozen(lambda x, w, b, derived: (x * derived + b,), derivation, (1,))


def _calls(frozen: Frozen) -> int:
    found: Any = frozen.derivation
    return int(found.calls)


def test_it_derives_once_and_again_after_each_kind_of_change(frozen: Frozen) -> None:
    x, weight, bias = torch.ones(3), nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    for expected in (2.0, 2.0):
        assert frozen(x, weight, bias)[0].tolist() == [expected] * 3
    assert _calls(frozen) == 1
    with torch.no_grad():
        bias.add_(1)
    assert frozen(x, weight, bias)[0].tolist() == [3.0] * 3
    assert _calls(frozen) == 1  # nothing derives from the bias
    with torch.no_grad():
        weight.mul_(2)
    assert frozen(x, weight, bias)[0].tolist() == [5.0] * 3
    weight.data = torch.full((3,), 5.0)
    assert frozen(x, weight, bias)[0].tolist() == [11.0] * 3
    assert _calls(frozen) == 3
    assert not frozen.derived([x, weight, bias])[0].requires_grad


def test_two_instances_keep_their_own(frozen: Frozen) -> None:
    x, bias = torch.ones(1), torch.zeros(1)
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1) * 3)
    for _ in range(3):
        assert frozen(x, first, bias)[0].item() == 2
        assert frozen(x, second, bias)[0].item() == 6
    assert _calls(frozen) == 2


def test_what_was_kept_goes_with_its_parameters(frozen: Frozen) -> None:
    x, bias = torch.ones(1), torch.zeros(1)
    for value in range(5):
        weight = nn.Parameter(torch.full((1,), float(value)))
        assert frozen(x, weight, bias)[0].item() == 2 * value
        del weight
        gc.collect()
        assert not frozen._kept


def test_inference_tensors_keep_no_version_and_are_derived_from_at_each_call(frozen: Frozen) -> None:
    with torch.inference_mode():
        weight = torch.ones(1)
        assert frozen(torch.ones(1), weight, torch.zeros(1))[0].item() == 2
        weight.add_(1)
        assert frozen(torch.ones(1), weight, torch.zeros(1))[0].item() == 4


def test_kept_tensors_are_no_inference_tensors(frozen: Frozen) -> None:
    weight = nn.Parameter(torch.ones(1))
    with torch.inference_mode():
        frozen(torch.ones(1), weight, torch.zeros(1))
    assert not any(t.is_inference() for t in frozen.derived([None, weight, None]))


def test_a_graph_module_is_what_derives_in_practice() -> None:
    gm = fx.symbolic_trace(Twice())
    weight = nn.Parameter(torch.ones(2))
    assert Frozen(lambda x, w, b, d: (d,), gm, (1,))(0, weight, 0)[0].tolist() == [2.0, 2.0]
