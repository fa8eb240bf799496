"""Curves: the same fine-tuning for all, sizes as asked, and crossings read off right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.static import Scene
from exprune_fx.static.criteria.base import Scores
from exprune_fx.studies.static.classifiers import Counts, _divided, judge
from exprune_fx.studies.static.constants import constants_section, run_constants
from exprune_fx.studies.static.curves import (
    Curves,
    Point,
    Remembered,
    Setting,
    criteria,
    curves_sections,
    run_curves,
)
from exprune_fx.zoo.training import Recipe
from tests.studies.static.subjects import made, subject, tiny

TUNED = Setting(Recipe(1, batch_size=8, peak_lr=0.05, bfloat16=False), bfloat16=False)


def curve(*points: tuple[str, float, float, float]) -> Curves:
    """Points as name, fraction removed, accuracy on test and on selection images."""
    made_of = tuple(Point(name, removed, 0.0, test, None, chosen) for name, removed, test, chosen in points)
    return Curves("made", {}, Setting(None), made_of)


def test_every_criterion_is_shrunk_to_size_and_tuned_alike() -> None:
    one = subject()
    seen: list[int] = []
    found = run_curves(
        one,
        criteria(one, shares=(0.5,)),
        (0.3,),
        TUNED,
        lambda _: None,
        lambda so_far: seen.append(len(so_far.points)),
    )
    assert found.names() == ("Expressiveness", "Magnitude", "Taylor", "Random", "Hybrid(0.5)")
    assert seen == list(range(1, 7)), "what there is is given after every point"
    for name in found.names():
        (point,) = found.of(name)
        assert 0.3 <= point.params_removed <= 0.4
    assert found.dense.params_removed == 0
    assert found.dense.before == judge(tiny(), one.test, bfloat16=False)
    again = run_curves(one, {"Magnitude": criteria(one)["Magnitude"]}, (0.3,), TUNED, lambda _: None)
    assert again.of("Magnitude")[0] == found.of("Magnitude")[0], (
        "the same images in the same order, whoever went before"
    )
    assert again.dense == found.dense
    text = [
        cell.text for section in curves_sections(found) if section.table for row in section.table.rows for cell in row
    ]
    assert "Hybrid(0.5)" in text


def test_without_fine_tuning_there_is_no_accuracy_after_it() -> None:
    one = subject()
    setting = replace(TUNED, recipe=None, constants="mean", ranking="layer")
    found = run_curves(one, {"Random": criteria(one)["Random"]}, (0.5,), setting, lambda _: None)
    assert found.of("Random")[0].after is None
    assert found.of("Random")[0].accuracy == found.of("Random")[0].before


def test_crossings_are_linear_between_points() -> None:
    found = curve(("dense", 0.0, 0.90, 0.9), ("A", 0.2, 0.90, 0.9), ("A", 0.4, 0.88, 0.9), ("A", 0.6, 0.5, 0.9))
    assert found.removed_at("A", 0.01) == pytest.approx(0.3)
    assert found.removed_at("A", 0.02) == pytest.approx(0.4)
    assert found.removed_at("A", 0.5) is None, "it never falls so far"


def test_the_hybrid_is_chosen_on_selection_images_not_on_the_test_set() -> None:
    found = curve(
        ("dense", 0.0, 0.9, 0.9),
        *(("Hybrid(0.25)", 0.5, 0.9, 0.7), ("Hybrid(0.75)", 0.5, 0.7, 0.88)),
        *(("Hybrid(0.25)", 0.9, 0.5, 0.1), ("Hybrid(0.75)", 0.9, 0.1, 0.1), ("Magnitude", 0.5, 0.8, 0.9)),
    )
    assert found.best_hybrid(0.01) == "Hybrid(0.75)"
    removed = {name: found.removed_at(name, 0.01) for name in ("Hybrid(0.25)", "Hybrid(0.75)")}
    assert (removed["Hybrid(0.25)"] or 0) > (removed["Hybrid(0.75)"] or 1)
    assert found.to_dict()["hybrid_chosen_on_selection"]["0.01"] == "Hybrid(0.75)"


def test_a_hybrid_that_never_falls_so_far_is_better_than_one_that_does() -> None:
    found = curve(
        *(("dense", 0.0, 0.9, 0.9), ("Hybrid(0.25)", 0.51, 0.9, 0.895), ("Hybrid(0.5)", 0.5, 0.9, 0.899)),
        ("Hybrid(0.75)", 0.5, 0.9, 0.7),
    )
    assert found.removed_at("Hybrid(0.5)", on_selection=True) is None
    assert found.best_hybrid(0.01) == "Hybrid(0.5)"


def test_a_criterion_is_asked_once() -> None:
    calls: list[Scene] = []

    class Counting:
        def scores(self, scene: Scene) -> Scores:
            calls.append(scene)
            return {group.name: torch.rand(group.repeats, group.size).double() for group in scene.groups}

    one = subject()
    run_curves(one, {"counting": Remembered(Counting())}, (0.2, 0.4), replace(TUNED, recipe=None), lambda _: None)
    assert len(calls) == 1


def test_sets_have_no_image_in_common_and_too_few_are_refused() -> None:
    rest = made(50, 0)
    found = _divided("x", tiny, tiny, made(30, 1), rest, made(40, 2), Counts(10, 30, 20, 40, 5))
    assert torch.equal(torch.cat([found.scoring.images, found.selection.images]), rest.images[:30])
    assert torch.equal(found.glance.images, found.test.images[:5])
    with pytest.raises(DataError, match="not enough images"):
        _divided("x", tiny, tiny, made(30, 1), rest, made(40, 2), Counts(40, 30, 20, 40))


def test_rules_for_constants_differ_only_in_what_is_folded() -> None:
    one = subject()
    (case,) = run_constants(one, {"Magnitude": criteria(one)["Magnitude"]}, (0.5,), lambda _: None)
    assert set(case.accuracy) == {"exact", "mean", "drop"}
    assert case.params_removed >= 0.5
    table = constants_section([case], len(one.glance)).table
    assert table is not None
    assert [column.title for column in table.columns][-3:] == ["exact", "mean", "drop"]
