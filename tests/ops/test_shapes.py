"""What runs on tensors without data gives the shapes of the operator in whose place it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from exprune_fx.ops.shapes import on_fakes

SQUARES = torch.ops.exprune.squares_conv.default


class Steps(TorchDispatchMode):
    """Counts the operators that are run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("space", [(7,), (7, 6), (5, 7, 6)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("before", [False, True], ids=["first stage", "second stage"])
def test_squares_have_the_shape_of_the_operator(
    dtype: torch.dtype, groups: int, space: tuple[int, ...], before: bool
) -> None:
    dims = len(space)
    walk = ([2] * dims, [1] * dims, [1] * dims, groups)
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(3, groups * 9, *space, dtype=dtype)
        weight = torch.empty(4 * groups, 9, *[3] * dims, dtype=dtype)
        squares: Tensor | None = SQUARES(x, weight, *walk, 0, 2, None) if before else None
        want, got = SQUARES(x, weight, *walk, 2, 9, squares), on_fakes(SQUARES)(x, weight, *walk, 2, 9, squares)
    assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


def test_it_takes_the_steps_of_one_channel() -> None:
    counts = []
    for run in (SQUARES, on_fakes(SQUARES)):
        with FakeTensorMode(), torch.no_grad(), Steps() as steps:
            run(torch.empty(1, 32, 8, 8), torch.empty(4, 32, 3, 3), [1, 1], [1, 1], [1, 1], 1, 0, 32)
        counts.append(steps.count)
    assert counts[1] * 16 < counts[0]


@pytest.mark.parametrize(("start", "stop"), [(3, 3), (4, 2)])
def test_it_refuses_what_the_operator_refuses(start: int, stop: int) -> None:
    x, weight, walk = torch.zeros(1, 8, 5, 5), torch.zeros(4, 8, 3, 3), ([1, 1], [1, 1], [1, 1], 1)
    for run in (SQUARES, on_fakes(SQUARES)):
        with pytest.raises(ValueError, match="no channels between"):
            run(x, weight, *walk, start, stop, None)


def test_other_operators_are_run_as_they_are() -> None:
    for target in (torch.ops.exprune.partial_conv.default, torch.ops.aten.relu.default, torch.relu):
        assert on_fakes(target) is target
