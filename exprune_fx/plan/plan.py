"""What was decided for every site of a model, and the file that holds it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from exprune_fx.errors import PlanError
from exprune_fx.files import written_whole
from exprune_fx.plan.array import AGAIN
from exprune_fx.plan.head import HeadPlan
from exprune_fx.plan.site import SitePlan
from exprune_fx.plan.timing import SiteTiming
from exprune_fx.sites import Site

FORMAT = "exprune-plan"
FORMAT_VERSION = 5
# version 1 knew no timings and no machine, 2 no prediction heads, 3 no rivals in windows, 4 no coded heads
_READ_VERSIONS = (1, 2, 3, 4, 5)

Objective = Literal["flops", "latency"]


@dataclass(frozen=True)
class Plan:
    """What was decided for every site of one model.

    Attributes:
        sites: one entry per site, in graph order.
        orders: for each reordered symmetry group, the permutation of its members: new position i holds old member
            ``order[i]``. Applied before anything else; thresholds and bases are those of the reordered graph.
        objective: what was minimised.
        examples: how many examples calibration saw.
        machine: where the timings were taken, in words; "" without timings.
        whole: what the whole compiled graph took, dense and staged; None where that was not measured.
        heads: what was decided for prediction heads, by ``calibrate_heads``; heads that it does not name stay dense.
    """

    sites: tuple[SitePlan, ...] = ()
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    objective: Objective = "flops"
    examples: int = 0
    machine: str = ""
    whole: SiteTiming | None = None
    heads: tuple[HeadPlan, ...] = ()

    @property
    def staged(self) -> tuple[SitePlan, ...]:
        """The entries in which a guard stops neurons."""
        return tuple(entry for entry in self.sites if entry.is_staged)

    @property
    def skipping(self) -> tuple[SitePlan, ...]:
        """The entries that stop nobody, but whose zeros the layer behind them skips."""
        return tuple(entry for entry in self.sites if entry.head == "none")

    @property
    def staged_heads(self) -> tuple[HeadPlan, ...]:
        """The prediction heads in which classes are stopped."""
        return tuple(entry for entry in self.heads if entry.is_staged)

    def for_site(self, name: str) -> SitePlan | None:
        """The entry of the site of this name, or None."""
        return next((entry for entry in self.sites if entry.site == name), None)

    def check_fits(self, sites: Iterable[Site]) -> None:
        """Checks that this plan was made for a model with these sites.

        Raises:
            PlanError: it was not (the message lists every difference), or it names a site twice.
        """
        planned = {entry.site: entry.weight_shape for entry in self.sites}
        if len(planned) < len(self.sites):
            raise PlanError(f"this plan has {len(self.sites)} entries for {len(planned)} sites", hint=AGAIN)
        found = {site.name: site.weight_shape for site in sites}
        differences = [f"site {name!r} is in the plan, not in the model" for name in planned.keys() - found.keys()]
        differences += [f"site {name!r} is in the model, not in the plan" for name in found.keys() - planned.keys()]
        differences += [
            f"site {name!r} has weight {list(found[name])} in the model, {list(planned[name])} in the plan"
            for name in planned.keys() & found.keys()
            if planned[name] != found[name]
        ]
        if differences:
            raise PlanError(
                "this plan was made for another model:\n    " + "\n    ".join(sorted(differences)),
                hint="calibrate this model, or give the plan that was made for it",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the format's name and version."""
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "objective": self.objective,
            "examples": self.examples,
            "machine": self.machine,
            "whole": self.whole.to_dict() if self.whole else None,
            "orders": {name: list(order) for name, order in self.orders.items()},
            "sites": [entry.to_dict() for entry in self.sites],
            "heads": [entry.to_dict() for entry in self.heads],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The inverse of ``to_dict``.

        Raises:
            PlanError: not a plan, a plan of another version, or a corrupt one.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError("this is not a plan of exprune_fx", hint="give a file written by Plan.save")
        if data.get("version") not in _READ_VERSIONS:
            raise PlanError(
                f"this plan has format version {data.get('version')!r}, this library reads 1 to {FORMAT_VERSION}",
                hint=AGAIN,
            )
        try:
            if data["objective"] not in ("flops", "latency"):
                raise PlanError(f"unknown objective {data['objective']!r}", hint=AGAIN)
            return cls(
                sites=tuple(SitePlan.from_dict(entry) for entry in data["sites"]),
                orders={str(name): tuple(int(i) for i in order) for name, order in data["orders"].items()},
                objective=data["objective"],
                examples=int(data["examples"]),
                machine=str(data.get("machine", "")),
                whole=SiteTiming.from_dict(data["whole"]) if data.get("whole") else None,
                heads=tuple(HeadPlan.from_dict(entry) for entry in data.get("heads", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"this plan is corrupt: {type(error).__name__}: {error}", hint=AGAIN) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; the file appears whole or not at all."""
        text = json.dumps(self.to_dict())
        with written_whole(Path(path)) as (file,):
            file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads what ``save`` wrote.

        Raises:
            PlanError: the file is missing, is not JSON (truncated, say), or is not a plan that this library reads.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            data = json.loads(text)
        except OSError as error:
            raise PlanError(f"cannot read plan {os.fspath(path)!r}: {error}", hint="check the path") from error
        except ValueError as error:
            raise PlanError(f"plan {os.fspath(path)!r} is corrupt: {error}", hint=AGAIN) from error
        return cls.from_dict(data)
