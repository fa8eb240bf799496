"""What the operators of prediction heads return, without computing it; as `exprune_fx.ops.native.fake` for sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.types import IntLikeType

from exprune_fx.ops.dominance import READ_BEYOND
from exprune_fx.ops.native.fake_site import DTYPES, require

MOST_WINNERS, MOST_STAGES = 64, 4


def register() -> None:
    """Registers the functions below for the operators, which must be loaded."""
    for function in (staged_argmax, staged_topk):
        torch.library.register_fake(f"exprune::{function.__name__}", function)


def staged_argmax(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    numbers: Tensor,
    center: Tensor | None,
    basis: Tensor | None,
    slack: Tensor,
    stages: list[int],
    reach: list[float],
) -> Tensor:
    """[..., K] -> int64 [...], the class of the largest logit of each row.

    Raises:
        KernelError: an argument does not fit.
    """
    tables = _Tables("staged_argmax", x, weight, bias, codes, numbers, center, basis, slack, stages, reach)
    tables.check(1)
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


def staged_topk(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    numbers: Tensor,
    center: Tensor | None,
    basis: Tensor | None,
    slack: Tensor,
    stages: list[int],
    reach: list[float],
    k: int,
) -> tuple[Tensor, Tensor]:
    """[..., K] -> the k largest logits of each row, [..., k] in the dtype of ``x``, and their classes, int64 [..., k].

    Raises:
        KernelError: an argument does not fit.
    """
    tables = _Tables("staged_topk", x, weight, bias, codes, numbers, center, basis, slack, stages, reach)
    tables.check(k)
    shape = [*x.shape[:-1], k]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class _Tables:
    """The arguments of a prediction head; see `exprune_fx.ops.dominance.Tables`, whose codes lie in one row here."""

    operator: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    codes: Tensor
    numbers: Tensor
    center: Tensor | None
    basis: Tensor | None
    slack: Tensor
    stages: list[int]
    reach: list[float]

    def check(self, winners: int) -> None:
        """Raises KernelError for the first argument that does not fit."""
        hint = "see exprune_fx/ops/dominance.py"
        require(self.operator, self.x.dtype in DTYPES, f"x is {self.x.dtype}", f"one of {DTYPES}")
        self._of("weight", self.weight, self.x.dtype, [self.weight.shape[0], self.x.shape[-1]])
        out, features = self.weight.shape
        require(self.operator, 1 <= winners <= MOST_WINNERS, f"{winners} winners", f"1 to {MOST_WINNERS}")
        require(self.operator, winners <= out, f"{winners} winners of {out} classes", "no more than there are")
        grows = all(a < b for a, b in zip([0, *self.stages], [*self.stages, features + 1], strict=True))
        what = f"stages {self.stages} of {features} features"
        require(self.operator, grows and 1 <= len(self.stages) <= MOST_STAGES, what, f"one to {MOST_STAGES}, growing")
        require(self.operator, len(self.reach) == len(self.stages), f"reach is {self.reach}", "a number for each stage")
        if self.bias is not None:
            self._of("bias", self.bias, self.x.dtype, [out])
        self._of("codes", self.codes, torch.int8, [out * self.stages[-1] + READ_BEYOND])
        self._of("numbers", self.numbers, torch.float32, [2 + 2 * len(self.stages), out])
        self._of("slack", self.slack, torch.float32, [5])
        if self.center is not None:
            self._of("center", self.center, torch.float32, [2, features])
        if self.basis is not None:
            require(self.operator, self.basis.dim() in (1, 2), f"basis is {list(self.basis.shape)}", hint)
            self._of("basis", self.basis, torch.float32, [features] * self.basis.dim())

    def _of(self, name: str, value: Tensor, dtype: torch.dtype, shape: Sequence[IntLikeType]) -> None:
        require(self.operator, value.dtype == dtype, f"{name} is {value.dtype}, not {dtype}", "convert it")
        what = f"{name} is {list(value.shape)}, not {shape}"
        require(self.operator, value.dim() == len(shape), what, "see exprune_fx/ops/dominance.py")
        for size, expected in zip(value.shape, shape, strict=True):
            require(self.operator, size == expected, what, "see exprune_fx/ops/dominance.py")
