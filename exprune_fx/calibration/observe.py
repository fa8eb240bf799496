"""Runs a graph over the calibration batches and shows each site's values to an observer, one batch at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import sympy
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx

from exprune_fx.calibration import ranks
from exprune_fx.calibration.data import Batches, check_finite, describe, read
from exprune_fx.calibration.energy import Pool, pool_after
from exprune_fx.errors import CalibrationError, ExpruneError
from exprune_fx.graph.running import examples_in, placeholder_values, symbol_values
from exprune_fx.sites import Site


@dataclass(frozen=True)
class SiteValues:
    """What a site computes with on one batch.

    Attributes:
        x: the reduction's input: [..., K*block] (linear) or [N, C, *space] (convolution).
        weight: [out, K*block] or [out, K, *kernel].
        bias: [out] or None.
        residual: in the shape of ``z``, or None.
        z: the dense pre-activation, bias and residual included: [..., out] or [N, out, *space'].
        pool: the max-pool that alone reads the site's activation, or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    z: Tensor
    pool: Pool | None


class Observer(Protocol):
    """Looks at a site's values on one batch.

    What collects statistics also has a method ``merge`` without arguments, which adds up what all processes collected
    under ``torchrun``; without it an observer can be used in one process only.
    """

    def __call__(self, site: Site, values: SiteValues, /) -> None:
        """Looks at one batch."""


class _Finished(Exception):  # noqa: N818 - no error
    """Every site has been observed: the rest of the graph need not be run."""


class _SiteInterpreter(fx.Interpreter):
    """Shows a site's values as soon as its pre-activation is known; values die as early as in any interpreter."""

    def __init__(self, gm: fx.GraphModule, sites: Collection[Site], observe: Observer) -> None:
        super().__init__(gm)
        self.extra_traceback = False  # else it rewrites the messages of errors that pass through
        self.at = ""
        self._observe = observe
        self._at_reduction = {site.node: site for site in sites}
        self._at_end = {(site.chain[-1] if site.chain else site.node): site for site in sites}
        self._by_name = {node.name: node for node in gm.graph.nodes}
        self._pools = {site.name: pool_after(self._by_name[site.activation_node]) for site in sites}
        self._waiting: dict[str, tuple[Tensor, Tensor, Tensor | None]] = {}
        self._left = len(self._at_end)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, and observes where a site's pre-activation ends."""
        self.at = f"at node {n.name!r}: "
        if n.name in self._at_reduction:
            (x, weight, *more), kwargs = self.fetch_args_kwargs_from_env(n)
            bias = more[0] if more else kwargs.get("bias")
            self._waiting[n.name] = (x, weight, bias)
        result = super().run_node(n)
        site = self._at_end.get(n.name)
        if site is not None:
            x, weight, bias = self._waiting.pop(site.node)
            residual = self.env[self._by_name[site.residual]] if site.residual else None
            self._observe(site, SiteValues(x, weight, bias, residual, result, self._pools[site.name]))
            self._left -= 1
            if not self._left:
                raise _Finished
        return result


@dataclass
class Data:
    """The calibration data: read once per pass, checked when first read, never held.

    Attributes:
        batches: what the caller gave.
        show_progress: draw a bar on stderr.
        examples: how many examples one pass sees; 0 before the first.
        sizes: the symbolic sizes of the first batch.
        examples_a_batch: in the first batch; 0 before the first pass.
    """

    batches: Batches
    show_progress: bool = False
    examples: int = 0
    sizes: dict[sympy.Expr, int] = field(default_factory=dict)
    examples_a_batch: int = 0
    _checked: set[str] = field(default_factory=set)

    def walk(self, gm: fx.GraphModule, sites: Collection[Site], observe: Observer, label: str) -> None:
        """One streaming pass; under ``torchrun`` each process runs its share of the batches.

        Raises:
            CalibrationError: no batches, fewer than there are processes, other batches than in the first pass, a batch
                that the model refuses, or a value that is not finite.
        """
        first = self.examples == 0
        watch = _watched(observe, self._checked)
        merge = getattr(observe, "merge", None)
        if ranks.count() > 1 and merge is None:
            raise CalibrationError(f"{label} cannot be shared by {ranks.count()} processes", hint="use one process")
        examples, run = 0, 0
        console = Console(stderr=True)
        with torch.no_grad(), Progress(console=console, disable=not self.show_progress, transient=True) as bar:
            task = bar.add_task(f"calibrate: {label}", total=None if first else self.examples)
            for index, batch in enumerate(read(self.batches)):
                if examples_in(batch) == 0:
                    continue  # no rows, no statistics
                examples += examples_in(batch)
                mine = index % ranks.count() == ranks.index()
                if first and mine:
                    check_finite(batch, index)
                self._run(gm, sites, watch if mine else None, batch, index)
                run += mine
                bar.update(task, completed=examples)
        if examples == 0:
            raise CalibrationError("the calibration data hold no example", hint="give at least one batch")
        if not first and examples != self.examples:
            raise CalibrationError(
                f"one pass over the calibration data saw {self.examples} examples, the next {examples}",
                hint="give batches that can be read again and again, such as a list or a DataLoader",
            )
        if not all(ranks.gathered(run)):
            raise CalibrationError(
                f"there are fewer batches than the {ranks.count()} processes", hint="give smaller batches, or more"
            )
        if merge is not None:
            merge()
        self.examples = examples
        self._checked.update(site.name for site in sites)

    def _run(
        self, gm: fx.GraphModule, sites: Collection[Site], observe: Observer | None, batch: object, index: int
    ) -> None:
        """Runs one batch; without an observer only its sizes are looked at."""
        interpreter = _SiteInterpreter(gm, sites, observe or _nobody)
        try:
            values = placeholder_values(gm, batch)
            if not self.sizes:
                self.sizes = symbol_values(gm, values)
            self.examples_a_batch = self.examples_a_batch or examples_in(batch)
            if observe is not None:
                interpreter.run(*values, enable_io_processing=False)
        except _Finished:
            pass
        except CalibrationError:
            raise
        except Exception as error:
            cause = error.what if isinstance(error, ExpruneError) else f"{type(error).__name__}: {error}"
            raise CalibrationError(
                f"the model refuses batch {index}, {describe(batch)}: {interpreter.at}{cause}",
                hint="a batch is a tuple of what the model takes (without labels), or a pair (args, kwargs)",
            ) from error


def _nobody(_site: Site, _values: SiteValues, /) -> None:
    """Looks at nothing."""


def _watched(observe: Observer, checked: Collection[str]) -> Observer:
    """The observer behind a check that what it is shown is finite, for sites that were not checked before."""

    def watch(site: Site, values: SiteValues) -> None:
        for what, value in (("input", values.x), ("pre-activation", values.z)):
            if site.name not in checked and not bool(torch.isfinite(value).all()):
                raise CalibrationError(
                    f"site {site.name!r} (node {site.node!r}): its {what}, shape {list(value.shape)}, "
                    "holds NaN or infinity",
                    hint="check the weights and the calibration data",
                )
        observe(site, values)

    return watch
