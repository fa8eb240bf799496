"""What was timed at one site."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
