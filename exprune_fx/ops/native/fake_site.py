"""What the arguments that all fused operators of a site share must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.types import IntLikeType

from exprune_fx.errors import KernelError
from exprune_fx.ops.codes import MOST_ROWS, blocks_of, code_ends
from exprune_fx.ops.dominance import READ_BEYOND

GUARDS = ("none", "threshold", "stats_test", "finite_population", "calibrated", "bound")
POOLED = "pooled"  # of convolutions alone: neurons are rivals in the windows of a max pool
ACTIVATIONS = ("relu", "relu6", "relu_squared")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_RIVALS = 64  # neurons in a window of a max pool
SQUARES = ("stats_test", "finite_population")


def ends_of_codes(columns: int, stages: Sequence[int], block: int, guard: str, principal: bool) -> list[int]:
    """`code_ends` of a site: a principal head reads no codes, and a rule that reads squared terms none either."""
    by_codes = not principal and guard not in SQUARES
    return code_ends(columns, [stage * block for stage in stages] if by_codes else [])


def require(operator: str, holds: bool | torch.SymBool, what: str, hint: str) -> None:
    """Raises KernelError unless it holds, now or where the size is known."""
    error = KernelError(f"exprune::{operator}: {what}", hint=hint)
    if isinstance(holds, torch.SymBool):
        torch._check(holds, lambda: str(error))  # becomes a check at run time where the size is known only there
    elif not holds:
        raise error


@dataclass(frozen=True, eq=False)
class Site:
    """The arguments that all operators share.

    Attributes:
        operator: its name.
        x: the input.
        weight: [out, K] or [out, C, kh, kw].
        bias: [out] or None.
        down: [r, K] or None.
        up: [out, r] or [out, r, kh, kw]; without `down`, the first stage's columns of a linear weight; or None.
        stages: terms seen at each test.
        block: features in one term.
        guard: one of `GUARDS`.
        limits: the guard's numbers for every neuron, or None.
        activation: one of `ACTIVATIONS`.
        codes: of a linear weight, with their numbers and slack: see `exprune_fx.ops.codes.Codes`; or none of them.
        code_rest: what these codes leave of the weight, see `exprune_fx.ops.split`; or None.
        coded: the head is coded, see `fake_coded`: nothing is known here of its stage.
    """

    operator: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    down: Tensor | None
    up: Tensor | None
    stages: list[int]
    block: int
    guard: str
    limits: Tensor | None
    activation: str
    codes: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    code_rest: Tensor | None = None
    coded: bool = False

    def require(self, holds: bool | torch.SymBool, what: str, hint: str = "see exprune_fx/ops/native/fake.py") -> None:
        """Raises KernelError, naming the operator, unless it holds."""
        require(self.operator, holds, what, hint)

    def check(self) -> None:
        """Raises KernelError for the first argument that does not fit."""
        self.require(self.x.dtype in DTYPES, f"x is {self.x.dtype}", f"one of {DTYPES}, or the readable form")
        self.require(self.activation in ACTIVATIONS, f"activation is {self.activation!r}", f"one of {ACTIVATIONS}")
        self.require(self.guard in (*GUARDS, POOLED), f"guard is {self.guard!r}", f"one of {(*GUARDS, POOLED)}")
        self.require((self.guard == "none") == (not self.stages), f"guard {self.guard!r} with stages {self.stages}")
        self.tensor("bias", self.bias, [self.weight.shape[0]])
        self._check_head()
        self._check_limits()
        self._check_codes()

    def tensor(self, name: str, value: Tensor | None, shape: Sequence[IntLikeType]) -> None:
        """Requires an optional tensor to have the dtype of x, its device, and a shape."""
        if value is None:
            return
        self.require(value.dtype == self.x.dtype, f"{name} is {value.dtype}, x is {self.x.dtype}", "convert it")
        self.require(value.device == self.x.device, f"{name} is on {value.device}, x on {self.x.device}", "move it")
        self.shape(name, value, shape)

    def shape(self, name: str, value: Tensor, shape: Sequence[IntLikeType]) -> None:
        """Requires a shape, of which sizes may be symbolic."""
        what = f"{name} is {list(value.shape)}, not {shape}"
        self.require(value.dim() == len(shape), what)
        for size, expected in zip(value.shape, shape, strict=True):
            self.require(size == expected, what)

    def _check_head(self) -> None:
        features, out = self.weight.shape[1], self.weight.shape[0]
        self.require(self.block >= 1 and features % self.block == 0, f"{features} features in blocks of {self.block}")
        terms = features // self.block
        if self.coded:
            return
        if self.down is None or self.up is None:
            self.require(self.down is None, "down without up")
            grows = all(a < b for a, b in zip([0, *self.stages], [*self.stages, terms], strict=True))
            self.require(not self.stages or grows, f"stages {self.stages} of {terms} terms", "let them grow, below all")
            self._check_packed_head()
            return
        rank = self.down.shape[0]
        self.require(self.stages == [rank], f"a principal head of rank {rank} with stages {self.stages}", f"[{rank}]")
        self.require(self.guard not in SQUARES, f"guard {self.guard!r} with a principal head", "use a prefix head")
        self.tensor("down", self.down, [rank, features])
        self.tensor("up", self.up, [out, rank, *self.weight.shape[2:]])

    def _check_packed_head(self) -> None:
        """Up without down: the first stage's columns (channels) of the weight once more, in rows of their own."""
        if self.up is None:
            return
        reads_it = bool(self.stages) and self.guard not in SQUARES
        self.require(reads_it, f"up without down, guard {self.guard!r}", "a prefix may be packed")
        self.tensor("up", self.up, [self.weight.shape[0], self.stages[0] * self.block, *self.weight.shape[2:]])

    def _check_limits(self) -> None:
        out, tests = self.weight.shape[0], len(self.stages)
        expected = {"calibrated": [tests, out], "bound": [tests, 2, out], POOLED: [tests, 2, out]}.get(self.guard)
        if expected is None or not tests:
            return
        if self.limits is None:
            self.require(False, f"guard {self.guard!r} without limits", f"give float32 {expected}")
            return
        self.require(self.limits.dtype == torch.float32, f"limits are {self.limits.dtype}", "give float32")
        self.shape("limits", self.limits, expected)

    @property
    def code_ends(self) -> list[int]:
        """Columns up to the end of each segment of the codes: a stage that reads them has a segment of its own."""
        return ends_of_codes(self.weight.shape[1], self.stages, self.block, self.guard, self.down is not None)

    def _check_codes(self) -> None:
        codes, numbers, slack = self.codes
        given = [each is not None for each in self.codes]
        self.require(all(given) or not any(given), "codes, code_numbers and code_slack", "give all of them or none")
        if codes is None or numbers is None or slack is None:
            return
        self.require(codes.dtype == torch.int8, f"codes are {codes.dtype}", "give int8")
        self.shape("codes", codes, [self.weight.numel() + READ_BEYOND])
        self.shape("code_numbers", numbers, [1 + len(blocks_of(self.code_ends)), self.weight.shape[0]])
        self.shape("code_slack", slack, [3])
        for name, table in (("code_numbers", numbers), ("code_slack", slack)):
            self.require(table.dtype == torch.float32, f"{name} are {table.dtype}", "give float32")
        self._check_rest()

    def _check_rest(self) -> None:
        if self.code_rest is None:
            return
        self.require(self.codes[0] is not None, "code_rest without codes", "give both or the codes alone")
        self.require(self.x.dtype == torch.float32, f"code_rest of {self.x.dtype}", "only float32 weights are split")
        self.require(self.guard not in SQUARES, f"code_rest under guard {self.guard!r}", "leave it out")
        self.require(self.code_rest.dtype == torch.int16, f"code_rest is {self.code_rest.dtype}", "give int16")
        self.shape("code_rest", self.code_rest, [self.weight.numel()])
        rows = self.x.numel() // max(self.weight.shape[1], 1)
        self.require(rows <= MOST_ROWS, f"code_rest for {rows} rows", f"it is for {MOST_ROWS} rows at most")
