"""What the prediction heads of a graph read of calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.calibration.data import Batches
from exprune_fx.errors import CalibrationError
from exprune_fx.graph.running import examples_in, placeholder_values
from exprune_fx.sites import PredictionHead

MOST_ROWS = 4096
"""Rows of input that are kept of each head."""


@dataclass(frozen=True, eq=False)
class HeadRows:
    """Rows of input of every head.

    Attributes:
        rows: by head, [n, features], float32.
        examples: how many examples they come from.
    """

    rows: dict[str, Tensor]
    examples: int

    @staticmethod
    def collect(gm: fx.GraphModule, heads: Sequence[PredictionHead], batches: Batches) -> HeadRows:
        """At most `MOST_ROWS` rows of each head, spread over all batches.

        Args:
            gm: the normalised graph.
            heads: of it.
            batches: of calibration data.

        Raises:
            CalibrationError: no batches, or a head that no example reached with finite values.
        """
        kept: dict[str, list[Tensor]] = {head.name: [] for head in heads}

        def keep(name: str, x: Tensor) -> None:
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            kept[name].append(spread(rows[torch.isfinite(rows).all(1)], MOST_ROWS))

        examples = 0
        iterator: Iterable[object] = batches() if callable(batches) else batches
        for batch in iterator:
            _read(gm, heads, batch, keep)
            examples += examples_in(batch)
        if not examples:
            raise CalibrationError("there are no batches to calibrate on", hint="give at least one batch")
        rows = {name: spread(torch.cat(pieces), MOST_ROWS) for name, pieces in kept.items()}
        for name, found in rows.items():
            if not len(found):
                raise CalibrationError(f"head {name!r}: no example has finite inputs there", hint="check the data")
        return HeadRows(rows, examples)

    def halves(self, name: str) -> tuple[Tensor, Tensor]:
        """Every second row, and the others; the only one for both."""
        rows = self.rows[name]
        return rows[::2], rows[1::2] if len(rows) > 1 else rows


def inputs_of(
    gm: fx.GraphModule, heads: Sequence[PredictionHead], batches: Sequence[object]
) -> dict[str, list[Tensor]]:
    """What each head's layer reads of each batch, in its own shape.

    Args:
        gm: the normalised graph.
        heads: of it.
        batches: what is timed.
    """
    found: dict[str, list[Tensor]] = {head.name: [] for head in heads}
    for batch in batches:
        _read(gm, heads, batch, lambda name, x: found[name].append(x.clone()))
    return found


def spread(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, at equal distances."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def _read(
    gm: fx.GraphModule, heads: Sequence[PredictionHead], batch: object, keep: Callable[[str, Tensor], None]
) -> None:
    """Runs the graph; what a head's layer reads goes to ``keep(name, x)``."""
    with torch.no_grad():
        _Reader(gm, heads, keep).run(*placeholder_values(gm, batch), enable_io_processing=False)


class _Reader(fx.Interpreter):
    """See `_read`."""

    def __init__(
        self, gm: fx.GraphModule, heads: Sequence[PredictionHead], keep: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__(gm)
        self._names = {head.node: head.name for head in heads}
        self._keep = keep

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node."""
        if n.name in self._names:
            (x, *_), _ = self.fetch_args_kwargs_from_env(n)
            self._keep(self._names[n.name], x)
        return super().run_node(n)
