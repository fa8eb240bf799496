"""Rows of prediction heads: the next token of a language model, ``argmax`` over 50,272 classes, at one token a call.

- ``head_flat``: weights and inputs are independent normal numbers. No basis tells more than another: the worst case,
  in which all codes are read.
- ``head_falling``: both in one random basis, the i-th number's variance falling as 1/i: what training makes of heads.
- ``head_trained``: a trained head and hidden states of text, from a file of the user's (`CHECKPOINT`).

All are staged by `calibrate_heads` under the sound guard, so that ours returns what the dense columns do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.bench.subject import RowSpec, Say, Subject
from exprune_fx.calibration import calibrate_heads
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.guards import Dominance

SEED = 0
CLASSES, HIDDEN = 50_272, 512  # of OPT-350m
DTYPES = (torch.float32, torch.bfloat16)
CALIBRATION_TOKENS, TURNS = 1024, 8
CHECKPOINT = "lm_head.pt"  # {"weight": [classes, features], "hidden": [tokens, features]}


class Head(nn.Module):
    """A linear layer without bias and ``argmax`` over its outputs."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.lm_head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.lm_head.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., features] -> int64 [...]."""
        classes: Tensor = self.lm_head(x).argmax(-1)
        return classes


def head_names(checkpoints: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """The rows that can be run: the trained one only with its file."""
    trained = ("head_trained",) if checkpoints is not None and (Path(checkpoints) / CHECKPOINT).is_file() else ()
    return ("head_flat", "head_falling", *trained)


def head_specs(
    checkpoints: str | os.PathLike[str] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    batch: int | None = None,
) -> Iterator[RowSpec]:
    """All rows of prediction heads.

    Args:
        checkpoints: folder with `CHECKPOINT`; without, the row of the trained head is left out.
        dtypes: of every row; by default float32 and bfloat16.
        batch: tokens a call; by default 1.
    """
    makers: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "head_flat": partial(_drawn, falling=False),
        "head_falling": partial(_drawn, falling=True),
        "head_trained": partial(_loaded, checkpoints),
    }
    for name in head_names(checkpoints):
        for dtype in dtypes or DTYPES:
            yield RowSpec(name, "micro", dtype, batch or 1, partial(make_head, name, makers[name], dtype, batch or 1))


def _drawn(falling: bool) -> tuple[Tensor, Tensor]:
    """Weights, and inputs for calibration and timing, from one seed."""
    torch.manual_seed(SEED)
    weight, tokens = torch.randn(CLASSES, HIDDEN) * HIDDEN**-0.5, torch.randn(2 * CALIBRATION_TOKENS, HIDDEN)
    if falling:
        scale = torch.arange(1, HIDDEN + 1) ** -0.5
        turn, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN))
        weight, tokens = (weight * scale) @ turn, (tokens * scale) @ turn
    return weight, tokens


def _loaded(checkpoints: str | os.PathLike[str] | None) -> tuple[Tensor, Tensor]:
    path = Path(checkpoints or ".") / CHECKPOINT
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        return data["weight"].float(), data["hidden"].float()
    except (OSError, KeyError, RuntimeError) as error:
        raise DataError(f"{str(path)!r} holds no head: {error}", hint="save {'weight': ..., 'hidden': ...}") from error


def make_head(
    name: str, make: Callable[[], tuple[Tensor, Tensor]], dtype: torch.dtype, batch: int, say: Say
) -> Subject:
    """A head that calibration stages on half of the tokens; it is timed on others.

    Args:
        name: of the row.
        make: gives weight and tokens.
        dtype: of both.
        batch: tokens a call.
        say: told what is being done.
    """
    say("weights and tokens")
    weight, tokens = (value.to(dtype) for value in make())
    model = Head(weight).eval()
    gm = capture(model, (tokens[:2],), dynamic_shapes=({0: Dim.AUTO},))
    say("calibrating")
    half = len(tokens) // 2
    plan = calibrate_heads(gm, [(tokens[:half],)], Dominance())
    inputs = tuple((rows.clone(),) for rows in tokens[half:][: TURNS * batch].split(batch))
    return Subject(name, "micro", dtype, batch, model, gm, plan, inputs, plan.heads[0].reason)
