"""What an explanation says, word for word, for a model small enough to check by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from exprune_fx import Bound, Calibrated, ExpruneError, PlanError, StatsTest, explain, measure
from exprune_fx.report.facts import claim_text
from exprune_fx.wording import count_text
from tests.report import tiny

GOLDEN = Path(__file__).parent / "tiny_captured.txt"


def section(text: str, title: str) -> str:
    """One section of a plain text, without its title."""
    found = re.search(rf"^{re.escape(title)}\n-+\n(.*?)(?:\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {title!r} in:\n{text}"
    return found.group(1)


def test_a_captured_graph_word_for_word() -> None:
    assert str(explain(tiny.captured())) == GOLDEN.read_text(encoding="utf-8")


def test_no_site_is_said_plainly() -> None:
    text = str(explain(tiny.captured(tiny.Smooth(), 4)))
    assert text.startswith("exprune_fx: No site was found")
    assert "its result meets gelu, not a ReLU-like activation" in section(text, "Left dense")
    assert "Staged sites" not in text


def test_a_guard_that_needs_exchangeable_terms_says_why_a_site_stays_dense() -> None:
    text = str(explain(tiny.staged(StatsTest(0.2))))
    row = next(line for line in section(text, "Left dense").split("\n") if line.startswith("first"))
    assert "StatsTest(0.2) needs exchangeable terms" in row
    assert "axis 1 of the model's input x" in row


@pytest.mark.parametrize(
    ("guard", "claim"), [(Calibrated(0.1), "measured on 64 examples"), (Bound(), "proved")], ids=["calibrated", "bound"]
)
def test_each_staged_site_states_its_claim(guard: Calibrated | Bound, claim: str) -> None:
    found = explain(tiny.staged(guard))
    staged = [site for site in found.sites if site.decision == "staged"]
    if staged:
        assert {site.claim for site in staged} == {claim}
        assert claim in section(str(found), "Staged sites")
    else:
        assert "would cost" in section(str(found), "Left dense")


def test_figures_are_those_of_the_measurement() -> None:
    staged = tiny.staged(Calibrated(0.1))
    measurement = measure(staged, tiny.examples())
    found = explain(staged, measurement)
    assert found.totals.examples == 64
    assert found.totals.flops_dense == 2 * (8 * 16 + 16 * 16 + 16 * 3)
    assert found.totals.fraction_removed == measurement.fraction_removed
    by_name = {site.name: site for site in found.sites}
    for site in measurement.sites:
        assert by_name[site.name].measured
        assert by_name[site.name].alive_fraction == site.alive_fraction
        assert by_name[site.name].flops_overhead == site.flops_overhead / 64
    assert "measured on 64 examples" in str(found).split("\n\n")[0].replace("\n", " ")


@pytest.mark.parametrize(("number", "text"), [(0, "0 examples"), (1, "1 example"), (1000, "1,000 examples")])
def test_one_is_told_from_several(number: int, text: str) -> None:
    assert count_text(number, "example") == text
    assert claim_text(Calibrated(0.1), number) == f"measured on {text}"


def test_without_a_measurement_the_figures_are_called_expected() -> None:
    found = explain(tiny.staged(Calibrated(0.1)))
    assert found.totals.examples == 0
    opening = str(found).split("\n\n")[0].replace("\n", " ")
    assert "as expected from 64 calibration examples" in opening
    assert "measured" not in opening


def test_a_reordered_group_shows_its_order() -> None:
    found = explain(tiny.staged(Calibrated(0.1)))
    (name,) = found.orders
    assert sorted(found.orders[name]) == list(range(16))
    first = ", ".join(map(str, found.orders[name][:8]))
    assert section(str(found), "Order of terms").split("\n")[-1] == f"{name}  {first}, ..."


def test_a_measurement_of_another_graph_is_refused() -> None:
    measurement = measure(tiny.staged(Calibrated(0.1)), tiny.examples())
    with pytest.raises(PlanError, match="another graph"):
        explain(tiny.staged(StatsTest(0.2)), measurement)
    with pytest.raises(ExpruneError, match="never staged"):
        explain(tiny.captured(), measurement)


def test_only_graphs_can_be_explained() -> None:
    with pytest.raises(ExpruneError, match="cannot explain a Tiny"):
        explain(tiny.Tiny())  # type: ignore[arg-type] # on purpose


def test_rich_shows_the_same_rows() -> None:
    found = explain(tiny.staged(Calibrated(0.1)))
    console = Console(width=200)
    with console.capture() as captured:
        console.print(found)
    for site in found.sites:
        assert re.search(rf"^{site.name} +linear", captured.get(), re.MULTILINE)


def test_rich_cuts_nothing_off_the_graph() -> None:
    console = Console(width=60)
    with console.capture() as captured:
        console.print(explain(tiny.captured()))
    shown = "".join(captured.get().split())
    code = GOLDEN.read_text(encoding="utf-8").split("def forward", 1)[1]
    assert max(map(len, code.split("\n"))) > 60, "else this test shows nothing"
    assert "".join(code.split()) in shown
