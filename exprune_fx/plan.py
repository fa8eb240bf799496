"""The plan: all that passes between deciding and rewriting. Frozen plain data, saved as JSON."""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from exprune_fx.errors import PlanError
from exprune_fx.guards import Calibrated, Guard, guard_from_dict
from exprune_fx.sites import Site

FORMAT = "exprune-plan"
FORMAT_VERSION = 2
_READ_VERSIONS = (1, 2)  # version 1 knew no timings and no machine

Head = Literal["prefix", "principal", "none", "dense"]
Objective = Literal["flops", "latency"]


@dataclass(frozen=True)
class Array:
    """A float32 array as plain data: shape and base64 of its little-endian bytes."""

    shape: tuple[int, ...]
    data: str

    @classmethod
    def of(cls, value: torch.Tensor) -> Array:
        """Packs a tensor, rounding to float32."""
        little = value.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4")
        return cls(tuple(value.shape), base64.b64encode(little.tobytes()).decode("ascii"))

    def tensor(self) -> torch.Tensor:
        """The float32 tensor.

        Raises:
            PlanError: the bytes are not those of an array of this shape.
        """
        try:
            raw = np.frombuffer(base64.b64decode(self.data, validate=True), dtype="<f4")
            return torch.from_numpy(raw.astype(np.float32).reshape(self.shape))
        except (ValueError, binascii.Error) as error:
            raise PlanError(f"an array of shape {list(self.shape)} does not decode: {error}", hint=_AGAIN) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"shape": list(self.shape), "float32": self.data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Array:
        """The inverse of ``to_dict``; the bytes are checked."""
        array = cls(tuple(int(size) for size in data["shape"]), str(data["float32"]))
        if any(size < 0 for size in array.shape):
            raise PlanError(f"an array has shape {list(array.shape)}", hint=_AGAIN)
        array.tensor()
        return array


@dataclass(frozen=True)
class SiteTiming:
    """What one site took on the clock: medians of interleaved rounds, each round walking over all sites in graph order.

    Attributes:
        dense_s: seconds of the fastest dense form.
        dense_form: which one that was.
        staged_s: seconds of the fastest candidate that is not dense.
        staged_form: which one that was.
        examples: in the batch that was timed.
        threads: of torch's pool.
        tried: seconds of everything that was timed, dense forms too, by its name.
    """

    dense_s: float
    dense_form: str
    staged_s: float
    staged_form: str
    examples: int
    threads: int
    tried: dict[str, float] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """How many times as fast as the best dense form the best candidate is; below 1 it is slower."""
        return self.dense_s / self.staged_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SiteTiming:
        """The inverse of ``to_dict``."""
        return cls(
            dense_s=float(data["dense_s"]),
            dense_form=str(data["dense_form"]),
            staged_s=float(data["staged_s"]),
            staged_form=str(data["staged_form"]),
            examples=int(data["examples"]),
            threads=int(data["threads"]),
            tried={str(name): float(seconds) for name, seconds in data["tried"].items()},
        )


@dataclass(frozen=True)
class SitePlan:
    """What was decided for one site.

    Attributes:
        site: the site's name.
        weight_shape: of the site that it was made for.
        head: what the guard looks at; "none" computes every neuron, and lets the linear layer that alone reads them
            skip those that are zero (in lowered graphs only, and exact); "dense" leaves the site alone.
        reason: why this was chosen, in words.
        guard: the stop rule; None when nothing is tested.
        stages: terms seen at each test, increasing, below K (prefix), or the rank (principal).
        thresholds: [stages, out], for Calibrated.
        down: [r, K], the principal basis, for a principal head.
        lift: [K, r], back from the basis: the head's second factor is ``weight @ lift``.
        alive_fraction: expected share of neurons that go on after each stage, on the calibration examples.
        fraction_removed: expected share of the site's dense FLOPs saved, overhead counted.
        timing: what was measured, where the objective is latency.
    """

    site: str
    weight_shape: tuple[int, ...]
    head: Head = "dense"
    reason: str = ""
    guard: Guard | None = None
    stages: tuple[int, ...] = ()
    thresholds: Array | None = None
    down: Array | None = None
    lift: Array | None = None
    alive_fraction: tuple[float, ...] = ()
    fraction_removed: float = 0.0
    timing: SiteTiming | None = None

    @property
    def is_staged(self) -> bool:
        """Whether a guard stops neurons of this site."""
        return self.head in ("prefix", "principal")

    def __post_init__(self) -> None:
        """Refuses what no site could be rewritten by."""
        if not self.is_staged:
            return
        at = f"plan of site {self.site!r} (weight {list(self.weight_shape)})"
        if self.guard is None or not self.stages:
            raise PlanError(f"{at}: a {self.head} head needs a guard and at least one stage", hint=_AGAIN)
        if self.head not in self.guard.heads:
            raise PlanError(
                f"{at}: {self.guard} cannot look at a {self.head} head",
                hint=f"it looks at {' or '.join(self.guard.heads)} heads",
            )
        if list(self.stages) != sorted(set(self.stages)) or self.stages[0] < self.guard.min_seen:
            raise PlanError(
                f"{at}: stages {list(self.stages)} are not increasing from at least {self.guard.min_seen}",
                hint="give increasing numbers of terms",
            )
        if isinstance(self.guard, Calibrated):
            expected = (len(self.stages), self.weight_shape[0])
            if self.thresholds is None or self.thresholds.shape != expected:
                found = None if self.thresholds is None else list(self.thresholds.shape)
                raise PlanError(f"{at}: thresholds have shape {found}, not {list(expected)}", hint=_AGAIN)
        if self.head == "principal" and (self.down is None or self.lift is None or len(self.stages) != 1):
            raise PlanError(f"{at}: a principal head needs its basis and exactly one rank", hint=_AGAIN)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "site": self.site,
            "weight_shape": list(self.weight_shape),
            "head": self.head,
            "reason": self.reason,
            "guard": self.guard.to_dict() if self.guard else None,
            "stages": list(self.stages),
            "thresholds": self.thresholds.to_dict() if self.thresholds else None,
            "down": self.down.to_dict() if self.down else None,
            "lift": self.lift.to_dict() if self.lift else None,
            "alive_fraction": list(self.alive_fraction),
            "fraction_removed": self.fraction_removed,
            "timing": self.timing.to_dict() if self.timing else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SitePlan:
        """The inverse of ``to_dict``."""
        if data["head"] not in get_args(Head):
            raise PlanError(f"plan of site {data['site']!r}: unknown head {data['head']!r}", hint=_AGAIN)
        timing = data.get("timing")
        arrays = {key: Array.from_dict(data[key]) if data[key] else None for key in ("thresholds", "down", "lift")}
        return cls(
            site=str(data["site"]),
            weight_shape=tuple(int(size) for size in data["weight_shape"]),
            head=data["head"],
            reason=str(data["reason"]),
            guard=guard_from_dict(data["guard"]) if data["guard"] else None,
            stages=tuple(int(stage) for stage in data["stages"]),
            alive_fraction=tuple(float(fraction) for fraction in data["alive_fraction"]),
            fraction_removed=float(data["fraction_removed"]),
            timing=SiteTiming.from_dict(timing) if timing else None,
            **arrays,
        )


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
    """

    sites: tuple[SitePlan, ...] = ()
    orders: dict[str, tuple[int, ...]] = field(default_factory=dict)
    objective: Objective = "flops"
    examples: int = 0
    machine: str = ""

    @property
    def staged(self) -> tuple[SitePlan, ...]:
        """The entries in which a guard stops neurons."""
        return tuple(entry for entry in self.sites if entry.is_staged)

    @property
    def skipping(self) -> tuple[SitePlan, ...]:
        """The entries that stop nobody, but whose zeros the layer behind them skips."""
        return tuple(entry for entry in self.sites if entry.head == "none")

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
            raise PlanError(f"this plan has {len(self.sites)} entries for {len(planned)} sites", hint=_AGAIN)
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
            "orders": {name: list(order) for name, order in self.orders.items()},
            "sites": [entry.to_dict() for entry in self.sites],
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
                hint=_AGAIN,
            )
        try:
            if data["objective"] not in ("flops", "latency"):
                raise PlanError(f"unknown objective {data['objective']!r}", hint=_AGAIN)
            return cls(
                sites=tuple(SitePlan.from_dict(entry) for entry in data["sites"]),
                orders={str(name): tuple(int(i) for i in order) for name, order in data["orders"].items()},
                objective=data["objective"],
                examples=int(data["examples"]),
                machine=str(data.get("machine", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"this plan is corrupt: {type(error).__name__}: {error}", hint=_AGAIN) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; the file appears whole or not at all."""
        target = Path(path)
        text = json.dumps(self.to_dict())
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

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
            raise PlanError(f"plan {os.fspath(path)!r} is corrupt: {error}", hint=_AGAIN) from error
        return cls.from_dict(data)


_AGAIN = "make the plan again with exprune_fx.calibrate"
