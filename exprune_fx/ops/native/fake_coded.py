"""What a convolution's fused operator is told of a coded head, checked without computing anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from exprune_fx.ops.coded import obstacle

MOST_CODED_RIVALS = 8  # neurons in a window of a max pool, as many as the smallest register tile has pixels

Require = Callable[[bool, str, str], None]


@dataclass(frozen=True, eq=False)
class CodedHead:
    """The arguments that a coded head has of its own, beside those that it forbids.

    Attributes:
        codes: int8 [out, K, kh, kw], or None where the head is not coded.
        numbers: float32 [2, out], scales and sums of codes; None with the codes.
        rest: int16 [out, K, kh, kw], from which a float32 weight is computed with in its place, or None.
    """

    codes: Tensor | None
    numbers: Tensor | None
    rest: Tensor | None

    @property
    def is_there(self) -> bool:
        """The head is coded."""
        return self.codes is not None

    def check(self, require: Require, weight: Tensor, stages: Sequence[int], up: Tensor | None, rivals: int) -> None:
        """Raises what `require` raises for the first argument that does not fit.

        Args:
            require: takes what has to hold, what is wrong, and what to do.
            weight: [out, K, kh, kw].
            stages: of the head.
            up: a principal head's second factor, or None.
            rivals: neurons in a window; 1 without windows.
        """
        codes, numbers, rest = self.codes, self.numbers, self.rest
        require((codes is None) == (numbers is None), "codes and code_numbers", "give both or none")
        require(rest is None or codes is not None, "code_rest without codes", "give both or none")
        if codes is None or numbers is None:
            return
        shape = list(weight.shape)
        reason = obstacle(shape, groups=1)
        require(not reason, f"no coded head: {reason}", "use a prefix head")
        require(up is None, "a coded head and a principal one", "give one of them")
        require(list(stages) == shape[1:2], f"a coded head with stages {list(stages)}", f"it sees all: {shape[1:2]}")
        few = f"at most {MOST_CODED_RIVALS}, or the readable form"
        require(rivals <= MOST_CODED_RIVALS, f"a coded head with windows of {rivals} rivals", few)
        for name, table, dtype, expected in (
            ("codes", codes, torch.int8, shape),
            ("code_numbers", numbers, torch.float32, [2, shape[0]]),
        ):
            require(table.dtype == dtype, f"{name} are {table.dtype}", f"give {dtype}")
            require(list(table.shape) == expected, f"{name} is {list(table.shape)}, not {expected}", "make them again")
        if rest is not None:
            require(rest.dtype == torch.int16, f"code_rest is {rest.dtype}", "give torch.int16")
            require(list(rest.shape) == shape, f"code_rest is {list(rest.shape)}, not {shape}", "make it again")
            require(weight.dtype == torch.float32, f"code_rest of {weight.dtype}", "it completes a float32 weight")
