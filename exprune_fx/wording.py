"""Numbers as words of a sentence, the same wherever a person reads them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal


def count_text(number: int, noun: str) -> str:
    """How many: "1 site", "1,000 examples"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent_text(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def fine_percent_text(fraction: float) -> str:
    """A fraction in percent, of any size, to two significant digits: "0.0034 %", "12 %", "100 %"."""
    return f"{Decimal(f'{100 * fraction:.2g}'):f} %"


def percents_text(fractions: Sequence[float]) -> str:
    """Fractions one after another, in whole percents: "62, 48, 41 %"."""
    return ", ".join(f"{100 * fraction:.0f}" for fraction in fractions) + " %" if fractions else "-"


def flops_text(flops: float | str | None) -> str:
    """FLOPs with a unit prefix; a formula in symbolic sizes as it is; a dash for None."""
    if flops is None:
        return "-"
    if isinstance(flops, str):
        return flops
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(flops) >= limit:
            return f"{flops / limit:,.2f} {prefix}"
    return f"{flops:,.0f}"


def milliseconds_text(seconds: float) -> str:
    """Three significant digits of a millisecond: "0.274 ms", "12.3 ms"."""
    return f"{1e3 * seconds:.3g} ms"
