"""What capture refuses: inputs and models of which no true graph can be made, each with the reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.errors import CaptureError
from exprune_fx.graph import capture
from tests.graph.models import Guarded, ResidualCnn, assert_same_state, state_of

AUTO = Dim.AUTO


def test_aliased_inputs_are_refused() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(CaptureError, match=r"args\[0\] and args\[1\] are the same tensor.*\n.*clone"):
        capture(Guarded(), (x, x))


def test_a_parameter_as_input_is_refused() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(CaptureError, match=r"args\[0\] is the model's own 'weight'"):
        capture(model, (model.weight,))


@pytest.mark.parametrize("args", [torch.randn(2, 4), [torch.randn(2, 4)]])
def test_args_that_are_no_tuple_are_refused(args: Any) -> None:
    with pytest.raises(CaptureError, match="args must be a tuple"):
        capture(nn.Linear(4, 3), args)


@pytest.mark.parametrize("model", [nn.Linear, torch.relu, "model", None])
def test_what_is_no_module_is_refused(model: Any) -> None:
    with pytest.raises(CaptureError, match="cannot capture"):
        capture(model, (torch.randn(2, 4),))


def test_a_failing_forward_is_reported_with_shapes_and_cause() -> None:
    with pytest.raises(CaptureError, match=r"Linear.*float32\[2, 5\].*float64\[1\]") as caught:
        capture(nn.Linear(4, 3), (torch.randn(2, 5), torch.randn(1, dtype=torch.float64)))
    assert caught.value.__cause__ is not None


def test_flags_come_back_when_export_fails() -> None:
    model = ResidualCnn()
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(2, 4),))
    assert all(m.training for m in model.modules())


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_data_dependent_model_is_refused_with_the_reason() -> None:
    with pytest.raises(CaptureError, match="values of a tensor") as caught:
        capture(DataDependent(), (torch.randn(3),))
    assert caught.value.__cause__ is not None


class Counter(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x + self.count


def test_a_model_that_writes_to_its_buffer_is_refused_and_left_as_it_was() -> None:
    model = Counter()
    before = state_of(model)
    with pytest.raises(CaptureError, match="writes to 'count'"):
        capture(model, (torch.randn(3),))
    assert_same_state(model, before)


class WritesInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


def test_a_model_that_writes_to_its_input_is_refused() -> None:
    with pytest.raises(CaptureError, match="writes to"):
        capture(WritesInput(), (torch.randn(3),))


def test_exported_program_in_train_mode_is_refused() -> None:
    program = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match="train mode"):
        capture(program)
    with_norm = torch.export.export(nn.BatchNorm1d(4).train(), (torch.randn(2, 4),))
    with pytest.raises(CaptureError, match="writes to"):
        capture(with_norm)


def test_a_higher_order_operator_is_refused() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))

    with pytest.raises(CaptureError, match="higher-order operator cond"):
        capture(Conditional(), (torch.randn(2),))


@dataclasses.dataclass
class Unregistered:
    value: Tensor


def test_an_unregistered_output_class_is_refused_with_a_hint() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Unregistered:
            return Unregistered(x + 1)

    with pytest.raises(CaptureError, match="register_dataclass"):
        capture(Model(), (torch.randn(2),))
