"""The plan: survives JSON unchanged, and says what is wrong with what is none."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from exprune_fx.errors import PlanError
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.plan import Array, Head, Plan, SitePlan, SiteTiming
from exprune_fx.sites import Site

FRACTIONS = st.floats(0, 1)
FLOATS = arrays(np.float32, array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32, allow_nan=False))


def _site(name: str = "fc", weight_shape: tuple[int, ...] = (4, 8)) -> Site:
    return Site(
        name=name,
        node="linear",
        activation_node="relu",
        kind="linear",
        activation="relu",
        weight=f"{name}.weight",
        weight_shape=weight_shape,
        terms=weight_shape[1],
        block=1,
        geometry=None,
        chain=(),
        residual=None,
        input_nonnegative=False,
        gated=None,
        exchangeable=True,
        reason="",
        input_group=None,
        output_group=None,
    )


def _calibrated(site: str = "fc") -> SitePlan:
    thresholds = Array.of(torch.tensor([[0.1, -1.5, -torch.inf, 3.0], [0.0, 1.0, 2.0, 3.0]]))
    return SitePlan(site, (4, 8), "prefix", "pays", Calibrated(0.02), (1, 4), thresholds, None, None, (0.5, 0.25), 0.3)


SECONDS = st.floats(0, 10, exclude_min=True)
TIMINGS = st.builds(
    SiteTiming,
    dense_s=SECONDS,
    dense_form=st.text(),
    staged_s=SECONDS,
    staged_form=st.text(),
    examples=st.integers(1, 64),
    threads=st.integers(1, 64),
    tried=st.dictionaries(st.text(), SECONDS, max_size=3),
)


@st.composite
def _entries(draw: st.DrawFn) -> SitePlan:
    out, terms = draw(st.integers(1, 5)), draw(st.integers(3, 20))
    reason, removed = draw(st.text()), draw(st.floats(-1, 1))
    site, shape = draw(st.text(min_size=1)), (out, terms)
    heads: list[Head] = ["dense", "none", "prefix", "principal", "coded"]
    head = draw(st.sampled_from(heads))
    if head in ("dense", "none"):
        return SitePlan(site, shape, head, reason, fraction_removed=removed, timing=draw(st.none() | TIMINGS))
    if head == "principal":
        rank = draw(st.integers(1, terms))
        down, lift = Array.of(torch.randn(rank, terms)), Array.of(torch.randn(terms, rank))
        thresholds = Array.of(torch.randn(1, out))
        looks: Guard = draw(st.sampled_from([Bound(), Calibrated(0.1)]))
        return SitePlan(site, shape, "principal", reason, looks, (rank,), thresholds, down, lift, (0.5,))
    if head == "coded":
        images = (out, 4 * terms, 3, 3)
        thresholds = Array.of(torch.randn(1, out))
        return SitePlan(site, images, "coded", reason, Calibrated(0.1), (4 * terms,), thresholds)
    stages = tuple(sorted(draw(st.sets(st.integers(2, terms - 1), min_size=1, max_size=3))))
    guard: Guard = draw(st.sampled_from([Threshold(-0.5), StatsTest(0.1), FinitePopulation(0.1), Bound()]))
    alive = tuple(draw(FRACTIONS) for _ in stages)
    return SitePlan(
        site, shape, "prefix", reason, guard, stages,
        alive_fraction=alive, fraction_removed=removed, timing=draw(st.none() | TIMINGS),
    )  # fmt: skip


PLANS = st.builds(
    Plan,
    sites=st.lists(_entries(), max_size=3).map(tuple),
    orders=st.dictionaries(st.text(), st.permutations(range(4)).map(tuple), max_size=2),
    objective=st.sampled_from(["flops", "latency"]),
    examples=st.integers(0, 10**6),
    machine=st.text(),
)


@settings(max_examples=40, deadline=None)
@given(plan=PLANS)
def test_a_plan_survives_json(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@settings(max_examples=40, deadline=None)
@given(value=FLOATS)
def test_an_array_survives_json_to_the_bit(value: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    tensor = torch.from_numpy(value)
    again = Array.from_dict(json.loads(json.dumps(Array.of(tensor).to_dict()))).tensor()
    assert again.dtype is torch.float32
    assert again.shape == tensor.shape
    assert torch.equal(again, tensor)
    assert torch.equal(torch.signbit(again), torch.signbit(tensor))


def test_an_array_takes_any_tensor_and_gives_a_new_one() -> None:
    value = torch.arange(6.0, dtype=torch.float64, requires_grad=True).reshape(2, 3).mT
    array = Array.of(value)
    assert array.shape == (3, 2)
    array.tensor().zero_()
    assert torch.equal(array.tensor().double(), value.detach())
    assert torch.equal(Array.of(torch.tensor([0.1], dtype=torch.bfloat16)).tensor(), torch.tensor([0.10009765625]))


@pytest.mark.parametrize(
    "data", [{"shape": [3], "float32": "AAAAAA=="}, {"shape": [1], "float32": "AAA"}, {"shape": [1], "float32": "*"}]
)
def test_bytes_that_are_no_such_array_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"an array of shape \[\d\] does not decode"):
        Array.from_dict(data)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_saved_plan_loads(tmp_path: Path) -> None:
    plan = Plan((_calibrated(), SitePlan("head", (2, 4), reason="it loses")), {"fc.weight[1]": (1, 0)}, "latency", 7)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert Plan.load(path) == plan
    assert Plan.load(str(path)) == plan
    assert json.loads(path.read_text())["version"] == 5
    assert os.listdir(tmp_path) == ["plan.json"], "nothing else is left behind"


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    old = Plan(examples=1)
    old.save(path)

    def fail(unfinished: Path, text: str, encoding: str) -> None:
        unfinished.write_bytes(text[:40].encode(encoding))
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            Plan(examples=2).save(path)
    assert Plan.load(path) == old
    assert os.listdir(tmp_path) == ["plan.json"], "nothing else is left behind"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "plan.json"
    Plan((_calibrated(),)).save(path)
    text = path.read_text()
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(PlanError, match=r"plan\.json' is corrupt.*\n.*make the plan again"):
        Plan.load(path)


def test_a_missing_file_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(PlanError, match=r"cannot read plan .*\n.*check the path"):
            Plan.load(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00plan")
    with pytest.raises(PlanError, match="is corrupt"):
        Plan.load(tmp_path / "binary")


@pytest.mark.parametrize("data", [[], None, 3, "plan", {}, {"format": "another", "version": 1}])
def test_what_is_no_plan_is_refused(data: object) -> None:
    with pytest.raises(PlanError, match=r"not a plan of exprune_fx"):
        Plan.from_dict(data)


@pytest.mark.parametrize("version", [0, 6, None, "1"])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(PlanError, match=rf"format version {version!r}, this library reads 1"):
        Plan.from_dict({**Plan().to_dict(), "version": version})


def test_a_file_of_the_first_version_is_read() -> None:
    plan = Plan((_calibrated(), SitePlan("head", (2, 4), reason="it loses")), {"g": (1, 0)}, "flops", 7)
    data = {**plan.to_dict(), "version": 1}
    del data["machine"]
    for entry in data["sites"]:
        del entry["timing"], entry["margins"], entry["window"]
    assert Plan.from_dict(data) == plan


def test_a_file_from_before_coded_heads_is_read() -> None:
    plan = Plan((_calibrated(), _rivals(site="conv")))
    assert Plan.from_dict({**plan.to_dict(), "version": 4}) == plan


def _rivals(**changes: Any) -> SitePlan:
    margins = Array.of(torch.tensor([[0.0, 1.5, 3e38, 0.25], [1.0, 0.0, 2.0, 3.0]]))
    return replace(_calibrated(), **{"margins": margins, "window": (2, 3), **changes})


def test_rivals_in_windows_survive_json() -> None:
    plan = Plan((_rivals(),))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": ()}, "in windows of "),
        ({"window": (2,)}, "in windows of "),
        ({"window": (2, 0)}, "in windows of "),
        ({"margins": None}, "need margins"),
        (
            {"margins": Array.of(torch.zeros(1, 4))},
            r"margins \[1, 4\] in windows of \[2, 3\] beside thresholds \[2, 4\]",
        ),
        ({"margins": Array.of(torch.full((2, 4), -1e-3))}, "not all finite and at least 0"),
        ({"margins": Array.of(torch.full((2, 4), torch.inf))}, "not all finite and at least 0"),
        ({"margins": Array.of(torch.full((2, 4), torch.nan))}, "not all finite and at least 0"),
        ({"guard": Bound(), "thresholds": None}, r"a Calibrated guard, not Bound\(\)"),
    ],
)
def test_margins_that_are_none_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        _rivals(**changes)


def _timed() -> SiteTiming:
    return SiteTiming(2e-4, "conv2d", 1e-4, "prefix stages at 4", 1, 2, {"conv2d": 2e-4, "prefix stages at 4": 1e-4})


def test_what_is_staged_and_what_only_skips() -> None:
    entries = (_calibrated(), SitePlan("a", (4, 8)), SitePlan("b", (4, 8), head="none", timing=_timed()))
    plan = Plan(entries, objective="latency")
    assert plan.staged == entries[:1]
    assert plan.skipping == entries[2:]
    assert _timed().speedup == pytest.approx(2.0)


def _changed(*path: str | int, to: object) -> dict[str, Any]:
    """The data of a good plan with one place overwritten."""
    data: Any = json.loads(json.dumps(Plan((_calibrated(),), {"g": (0, 1)}).to_dict()))
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return dict(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_changed("objective", to="beauty"), "unknown objective 'beauty'"),
        (_changed("examples", to="many"), "corrupt: ValueError"),
        (_changed("orders", to=[1]), "corrupt: AttributeError"),
        (_changed("orders", to={"g": 3}), "corrupt: TypeError"),
        (_changed("sites", to=[{}]), "corrupt: KeyError: 'head'"),
        (_changed("sites", 0, "head", to="tail"), "site 'fc': unknown head 'tail'"),
        (_changed("sites", 0, "guard", to={"name": "Dreamt"}), "unknown guard 'Dreamt'"),
        (_changed("sites", 0, "guard", to="Bound"), "corrupt"),
        (_changed("sites", 0, "stages", to=[4, 1]), r"stages \[4, 1\] are not increasing"),
        (_changed("sites", 0, "thresholds", "float32", to="AAAA"), "does not decode"),
        (_changed("sites", 0, "timing", to={"dense_s": 1.0}), "corrupt: KeyError"),
        (_changed("sites", 0, "timing", to=3), "corrupt: TypeError"),
        (_changed("sites", 0, "thresholds", to=None), r"thresholds have shape None, not \[2, 4\]"),
    ],
)
def test_a_corrupt_plan_is_refused(data: dict[str, Any], message: str) -> None:
    Plan.from_dict(_changed("examples", to=3))
    with pytest.raises(PlanError, match=message):
        Plan.from_dict(data)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_single_change_gives_another_error(data: st.DataObject) -> None:
    """Whatever is in one place of the file: a plan, or a PlanError."""
    junk: st.SearchStrategy[object] = st.one_of(
        st.none(), st.integers(), st.floats(allow_infinity=False), st.text(), st.lists(st.integers()), st.just({})
    )
    keys = ["version", "objective", "examples", "orders", "sites", *_calibrated().to_dict()]
    key, value = data.draw(st.sampled_from(keys)), data.draw(junk)
    assume(key != "weight_shape" or value not in ([], {}, ""))  # the next test
    path = [key] if key in Plan().to_dict() else ["sites", 0, key]
    with contextlib.suppress(PlanError):
        assert isinstance(Plan.from_dict(_changed(*path, to=value)), Plan)


@pytest.mark.parametrize(
    "data", [_changed("sites", 0, "weight_shape", to=[]), _changed("examples", to=float("inf"))], ids=["no axis", "inf"]
)
def test_a_shape_without_axes_and_an_infinite_count_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict(data)


# --- what no site could be rewritten by -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guard": None}, "a prefix head needs a guard"),
        ({"stages": ()}, "at least one stage"),
        ({"guard": StatsTest(0.1), "head": "principal"}, r"StatsTest\(0.1\) cannot look at a principal head"),
        ({"stages": (4, 4)}, "not increasing"),
        ({"stages": (0, 4)}, "not increasing from at least 1"),
        ({"guard": FinitePopulation(0.1), "stages": (1, 4)}, "not increasing from at least 2"),
        ({"thresholds": Array.of(torch.zeros(4, 2))}, r"thresholds have shape \[4, 2\], not \[2, 4\]"),
        ({"head": "principal"}, "needs its basis and exactly one rank"),
    ],
)
def test_an_impossible_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        replace(_calibrated(), **change)
    assert "'fc'" in str(caught.value)
    assert "[4, 8]" in str(caught.value)


def _coded(**changes: Any) -> SitePlan:
    thresholds = Array.of(torch.tensor([[0.1, -1.5, -torch.inf]]))
    entry = SitePlan("conv", (3, 8, 3, 3), "coded", "pays", Calibrated(0.02), (8,), thresholds)
    return replace(entry, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guard": Bound(), "thresholds": None}, r"Bound\(\) cannot look at a coded head"),
        ({"stages": (4,)}, r"a coded head sees all terms, stages are \[4\]"),
        ({"stages": (4, 8), "thresholds": Array.of(torch.zeros(2, 3))}, r"sees all terms, stages are \[4, 8\]"),
        ({"weight_shape": (3, 8)}, "no coded head: it is no two-dimensional convolution"),
        ({"weight_shape": (3, 6, 3, 3), "stages": (6,)}, "6 input channels are no multiple of 4"),
        ({"weight_shape": (3, 8000, 3, 3), "stages": (8000,)}, "72000 products may leave 32 bits"),
        ({"thresholds": None}, r"thresholds have shape None, not \[1, 3\]"),
    ],
)
def test_an_impossible_coded_entry_is_refused(changes: dict[str, Any], message: str) -> None:
    assert _coded().is_staged
    assert _coded().looks_at == "coded"
    with pytest.raises(PlanError, match=message) as caught:
        _coded(**changes)
    assert "'conv'" in str(caught.value)


# --- which model it is for --------------------------------------------------------------------------------------------


def test_a_plan_fits_the_model_that_it_was_made_for() -> None:
    plan = Plan((_calibrated("a"), SitePlan("b", (2, 3))))
    plan.check_fits([_site("a"), _site("b", (2, 3))])
    assert [entry.site for entry in plan.staged] == ["a"]
    entry = plan.for_site("b")
    assert entry is not None
    assert entry.head == "dense"
    assert plan.for_site("c") is None


def test_a_plan_for_another_model_is_refused_with_every_difference() -> None:
    plan = Plan((_calibrated("a"), _calibrated("b")))
    with pytest.raises(PlanError, match="made for another model") as caught:
        plan.check_fits([_site("b", (4, 16)), _site("c")])
    message = str(caught.value)
    assert "site 'a' is in the plan, not in the model" in message
    assert "site 'c' is in the model, not in the plan" in message
    assert "site 'b' has weight [4, 16] in the model, [4, 8] in the plan" in message
