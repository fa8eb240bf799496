"""Numbers as people read them: no exponents, no dash for zero."""

from __future__ import annotations

import pytest

from exprune_fx import wording


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.0, "0 %"),
        (1e-7, "0.00001 %"),
        (0.0000345, "0.0034 %"),
        (0.0123, "1.2 %"),
        (0.346, "35 %"),
        (0.997, "100 %"),
        (1.0, "100 %"),
    ],
)
def test_fine_percents_have_two_digits_and_no_exponent(fraction: float, text: str) -> None:
    assert wording.fine_percent_text(fraction) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [(None, "-"), ("2*s0", "2*s0"), (0, "0"), (999, "999"), (1000, "1.00 k"), (2.5e9, "2.50 G"), (3e15, "3,000.00 T")],
)
def test_flops_have_a_prefix(flops: float | str | None, text: str) -> None:
    assert wording.flops_text(flops) == text


def test_one_is_no_plural() -> None:
    assert [wording.count_text(number, "site") for number in (0, 1, 2000)] == ["0 sites", "1 site", "2,000 sites"]
