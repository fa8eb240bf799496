"""What shrinking did, as plain data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from exprune_fx.wording import percent_text


@dataclass(frozen=True)
class GroupReport:
    """One group.

    Attributes:
        name: of the group.
        members: before, all indices together.
        removed: how many went.
        layers: parameters that its members run through.
        score_removed: lowest and highest score of what went; None where nothing did.
        score_kept: lowest and highest score of what stayed.
        reason: why nothing could go; "" where it could.
    """

    name: str
    members: int
    removed: int
    layers: tuple[str, ...]
    score_removed: tuple[float, float] | None
    score_kept: tuple[float, float] | None
    reason: str = ""


class Staged(Protocol):
    """What `exprune_fx.measure` gives, as far as it is needed here."""

    @property
    def examples(self) -> int:
        """How many were measured."""
        ...

    @property
    def flops_dense(self) -> float:
        """Of the graph before staging, over all examples."""
        ...

    @property
    def flops_staged(self) -> float:
        """Of the staged graph without the tests."""
        ...

    @property
    def flops_overhead(self) -> float:
        """Of the tests."""
        ...


@dataclass(frozen=True)
class ShrinkReport:
    """What one call of `shrink` did.

    Attributes:
        criterion: by what members were chosen.
        params_before: parameters of the whole model.
        params_after: of what is left.
        flops_before: of one example, 2 for a multiply-add.
        flops_after: of what is left.
        groups: one entry for each group that could or could not lose members.
        rounds: how many removals there were.
    """

    criterion: str
    params_before: int
    params_after: int
    flops_before: float
    flops_after: float
    groups: tuple[GroupReport, ...] = field(default_factory=tuple)
    rounds: int = 1

    @property
    def params_removed(self) -> float:
        """Fraction of parameters that went."""
        return 1 - self.params_after / self.params_before if self.params_before else 0.0

    @property
    def flops_removed(self) -> float:
        """Fraction of FLOPs that went."""
        return 1 - self.flops_after / self.flops_before if self.flops_before else 0.0

    @property
    def members_removed(self) -> float:
        """Fraction of members that went, of those that could."""
        could = [group for group in self.groups if not group.reason]
        total = sum(group.members for group in could)
        return sum(group.removed for group in could) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived fractions included."""
        return asdict(self) | {
            "params_removed": self.params_removed,
            "flops_removed": self.flops_removed,
            "members_removed": self.members_removed,
        }

    def __str__(self) -> str:
        rows = [["group", "members", "removed", "scores removed", "scores kept", "note"]]
        for group in self.groups:
            scores = [_range(group.score_removed), _range(group.score_kept)]
            rows.append([group.name, f"{group.members:,}", f"{group.removed:,}", *scores, group.reason])
        return "\n".join([*self._totals(), "", *_table(rows)])

    def _totals(self) -> list[str]:
        often = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        return [
            f"Shrunk by {self.criterion}{often}",
            f"  parameters {self.params_before:,} -> {self.params_after:,} "
            f"({percent_text(self.params_removed)} removed)",
            f"  FLOPs of one example {self.flops_before:,.0f} -> {self.flops_after:,.0f} "
            f"({percent_text(self.flops_removed)} removed)",
        ]

    def with_staged(self, measured: Staged) -> str:
        """Both savings in one text: members removed for good, and neurons stopped per input.

        Args:
            measured: `exprune_fx.measure(staged, batches)` of the staged form of the shrunk model.
        """
        each = max(measured.examples, 1)
        shrunk = measured.flops_dense / each
        staged = (measured.flops_staged + measured.flops_overhead) / each
        rows = [["", "FLOPs of one example", "removed"], ["dense", f"{self.flops_before:,.0f}", ""]]
        rows.append(["shrunk", f"{shrunk:,.0f}", percent_text(1 - shrunk / self.flops_before)])
        rows.append(["shrunk and staged", f"{staged:,.0f}", percent_text(1 - staged / self.flops_before)])
        return "\n".join([*self._totals(), "", *_table(rows)])


def _range(scores: tuple[float, float] | None) -> str:
    return "-" if scores is None else f"{scores[0]:.3g} to {scores[1]:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
