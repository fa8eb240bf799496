"""The options of the backend, read and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from exprune_fx.calibration.request import check_objective, check_stages
from exprune_fx.errors import ExpruneError, GuardError, PlanError
from exprune_fx.guards import Bound, Calibrated, Dominance, Guard
from exprune_fx.plan import Objective, Plan

HOW_TO_CALIBRATE = (
    'plan = calibrate(capture(model, args), batches); plan.save("plan.json"); '
    'torch.compile(model, backend="exprune", options={"plan": "plan.json"})'
)
Inner = str | Callable[..., Any]


@dataclass(frozen=True)
class Options:
    """What ``options=`` may hold; `None` where it was not given.

    Attributes:
        guard: the stop rule for every site, where there is no plan.
        stages: fractions of a site's terms at which it is tested, where there is no plan.
        plan: what `calibrate` decided, or the path of the file that ``Plan.save`` wrote.
        objective: "flops" stages every site that the guard allows; "latency" only those that a native kernel holds and
            whose tensors need not be computed anew at each call. A plan has its own.
        inner: the backend that compiles the staged graph, by its name or as a callable.
        freeze: compute what derives from parameters once, and again when one was replaced or written to.
    """

    guard: Guard | None = None
    stages: tuple[float, ...] | None = None
    plan: Plan | None = None
    objective: Objective | None = None
    inner: Inner = "inductor"
    freeze: bool = False

    @property
    def chosen(self) -> bool:
        """Whether the caller said how to stage."""
        return self.plan is not None or self.guard is not None or self.stages is not None


def read_options(options: Mapping[str, Any] | None) -> Options:
    """The options of one ``torch.compile`` call.

    Raises:
        ExpruneError: an unknown option, or a value of another type than the option takes.
        GuardError: a guard that needs calibration, or stages that are no increasing fractions.
        PlanError: a plan that cannot be read, or an objective that there is not.
    """
    given = dict(options or {})
    known = [field.name for field in fields(Options)]
    unknown = sorted(map(str, given.keys() - set(known)))
    if unknown:
        raise ExpruneError(
            f"backend exprune does not know the option{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}",
            hint=f"it takes {', '.join(known)}",
        )
    read = {name: _READERS[name](value) for name, value in given.items() if value is not None}
    found = Options(**read)
    if found.plan is not None:
        _check_beside_plan(found, found.plan)
    return found


def _check_beside_plan(options: Options, plan: Plan) -> None:
    twice = [name for name in ("guard", "stages") if getattr(options, name) is not None]
    if twice:
        raise ExpruneError(
            f"backend exprune was given a plan and {' and '.join(twice)} too",
            hint="a plan holds the guard and the stages of every site: leave them out",
        )
    if options.objective not in (None, plan.objective):
        raise ExpruneError(
            f"the plan was made for objective {plan.objective!r}, the option says {options.objective!r}",
            hint=f"leave it out, or calibrate with objective={options.objective!r}",
        )


def _refused(name: str, value: object, takes: str) -> ExpruneError:
    return ExpruneError(f"option {name!r} of backend exprune is a {type(value).__name__}", hint=f"it takes {takes}")


def _guard(value: object) -> Guard:
    if not isinstance(value, Guard):
        raise _refused("guard", value, "a guard, such as exprune_fx.Bound()")
    if isinstance(value, Dominance):
        raise GuardError(
            f"{value} is for prediction heads, which a plan of calibrate_heads names", hint=HOW_TO_CALIBRATE
        )
    if isinstance(value, Calibrated):
        raise GuardError(f"{value} needs thresholds from calibration data", hint=HOW_TO_CALIBRATE)
    return value


def _stages(value: object) -> tuple[float, ...]:
    check_stages(value)
    assert isinstance(value, list | tuple)
    return tuple(value)


def _plan(value: object) -> Plan:
    if isinstance(value, Plan):
        return value
    if isinstance(value, str | os.PathLike):
        return Plan.load(value)
    raise PlanError(
        f"option 'plan' of backend exprune is a {type(value).__name__}",
        hint="give the Plan that calibrate returned, or the path of the file that plan.save wrote",
    )


def _inner(value: object) -> Inner:
    if value == "exprune":
        raise ExpruneError("the inner backend of exprune is exprune", hint='give another one, such as "inductor"')
    if isinstance(value, str) or callable(value):
        return value
    raise _refused("inner", value, "the name of a backend, or a callable")


def _freeze(value: object) -> bool:
    if not isinstance(value, bool):
        raise _refused("freeze", value, "True or False")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "guard": _guard,
    "stages": _stages,
    "plan": _plan,
    "objective": check_objective,
    "inner": _inner,
    "freeze": _freeze,
}

DEFAULT_GUARD = Bound()
DEFAULT_STAGES = (1 / 8, 1 / 4, 1 / 2)
