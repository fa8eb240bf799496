"""staged_argmax and staged_topk: against float64, against the readable form, on every instruction set; determinism."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
from exprune_fx.ops.dominance import in_one_row, tables_of
from exprune_fx.ops.native import fake_heads

pytestmark = pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
ops = torch.ops.exprune
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True)
class Case:
    classes: int = 40
    features: int = 12
    rows: tuple[int, ...] = (3,)
    stages: tuple[int, ...] = (12,)
    dtype: torch.dtype = torch.float32
    bias: bool = True
    center: bool = False
    basis: int = 0  # dimensions of the tensor; 0 for none
    reach: float = 1.0
    winners: int = 1
    seed: int = 0

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(*self.rows, self.features, generator=generator)
        # a common part and falling columns: what center and stages are made for
        fall = torch.arange(1, self.features + 1) ** -0.5
        weight = torch.randn(self.classes, self.features, generator=generator) * fall + 0.3
        bias = torch.randn(self.classes, generator=generator) if self.bias else None
        return x.to(self.dtype), weight.to(self.dtype), None if bias is None else bias.to(self.dtype)

    def turned(self) -> tuple[Tensor | None, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        center = torch.randn(2, self.features, generator=generator) * 0.3 if self.center else None
        if self.basis == 1:
            return center, torch.rand(self.features, generator=generator) + 0.5
        if self.basis == 2:
            return center, torch.eye(self.features) + 0.3 * torch.randn(
                self.features, self.features, generator=generator
            )
        return center, None

    def arguments(self) -> tuple[object, ...]:
        x, weight, bias = self.operands()
        return (x, weight, bias, *self.tables(weight, bias))

    def tables(self, weight: Tensor, bias: Tensor | None, *, one_row: bool = True) -> tuple[object, ...]:
        tables = tables_of(weight, bias, self.stages, *self.turned())
        codes = in_one_row(tables.codes, self.stages) if one_row else tables.codes
        reach = [self.reach] * len(self.stages)
        return (codes, tables.numbers, tables.center, tables.basis, tables.slack, list(self.stages), reach)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    features = draw(st.integers(1, 70))
    stages = sorted({*draw(st.lists(st.integers(1, features), max_size=3)), features})
    classes = draw(st.one_of(st.integers(1, 40), st.integers(250, 530)))
    return Case(
        classes=classes,
        features=features,
        rows=tuple(draw(st.lists(st.integers(0, 4), max_size=2))),
        stages=tuple(stages),
        dtype=draw(st.sampled_from(DTYPES)),
        bias=draw(st.booleans()),
        center=draw(st.booleans()),
        basis=draw(st.integers(0, 2)),
        winners=draw(st.integers(1, min(classes, 6))),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = native.isa()
    try:
        ops._force_isa(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    ops._force_isa(before)


def assert_dense_winners(case: Case, values: Tensor | None, indices: Tensor) -> None:
    """Against float64: what is chosen has what the best have, up to the rounding of one dense layer."""
    x, weight, bias = case.operands()
    truth = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    best = truth.topk(case.winners, dim=-1).values
    sizes = F.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    scale = float(sizes.max()) if sizes.numel() else 0.0
    # the float32 sum, which any order of the terms keeps, and the rounding of the result on either side
    tolerance = scale * (2 * case.features * 2.0**-24 + 4 * ROUNDOFF[case.dtype])
    chosen = truth.gather(-1, indices)
    assert (best - chosen <= tolerance).all()
    assert all(len(set(row.tolist())) == case.winners for row in indices.reshape(-1, case.winners))
    if values is not None:
        assert ((values.double() - chosen).abs() <= tolerance).all()


@settings(max_examples=min(60, settings().max_examples), deadline=None)
@given(case=cases())
def test_the_winners_are_those_of_float64_up_to_rounding(case: Case) -> None:
    values, indices = ops.staged_topk(*case.arguments(), case.winners)
    assert_dense_winners(case, values, indices)
    first = ops.staged_argmax(*case.arguments())
    assert torch.equal(first, indices[..., 0])


@settings(max_examples=min(40, settings().max_examples), deadline=None)
@given(case=cases(), reach=st.sampled_from([1.0, 0.4, 0.1]))
def test_it_computes_what_the_readable_form_says(case: Case, reach: float) -> None:
    case = Case(**{**vars(case), "reach": reach, "dtype": torch.float32})
    x, weight, bias = case.operands()
    after = ops.guard_dominance(x, weight, bias, *case.tables(weight, bias, one_row=False), case.winners)
    values, indices = ops.finish_topk(x, weight, bias, after < len(case.stages), case.winners)
    found, classes = ops.staged_topk(*case.arguments(), case.winners)
    # float32 sums of up to 70 terms and a bias, in two orders
    torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5)
    assert torch.equal(classes, indices)  # random numbers of float32 do not tie


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("basis", [0, 2])
def test_every_instruction_set_gives_the_winners(dtype: torch.dtype, basis: int) -> None:
    case = Case(classes=530, features=67, stages=(16, 67), rows=(18,), center=True, basis=basis, winners=3, dtype=dtype)
    assert_dense_winners(case, *ops.staged_topk(*case.arguments(), 3))


def test_the_first_of_equal_logits_wins() -> None:
    weight = torch.zeros(600, 8)
    weight[[70, 300, 599]] = 1.0
    case = Case(classes=600, features=8, stages=(4, 8))
    tables = case.tables(weight, None)
    x = torch.ones(1, 8)
    assert ops.staged_argmax(x, weight, None, *tables).item() == 70
    values, indices = ops.staged_topk(x, weight, None, *tables, 5)
    assert indices.tolist() == [[70, 300, 599, 0, 1]]
    assert values.tolist() == [[8.0, 8.0, 8.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_that_rounding_makes_equal_are_equal(dtype: torch.dtype) -> None:
    """A half-precision layer rounds its logits, and its argmax is the first of those that come out equal."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(64, generator=generator)
    weight = (base + 1e-3 * torch.randn(900, 64, generator=generator)).to(dtype)
    x = torch.randn(40, 64, generator=generator).to(dtype)
    case = Case(classes=900, features=64, stages=(16, 64), dtype=dtype)
    found = ops.staged_argmax(x, weight, None, *case.tables(weight, None))
    logits = (x.double() @ weight.double().t()).to(dtype)
    # the true logits, rounded once; a float32 sum may fall on the other side of a rounding boundary, seldom
    assert (found == logits.argmax(-1)).double().mean() >= (0.9 if dtype == torch.float32 else 0.8)
    best, chosen = logits.amax(-1).double(), logits.double().gather(-1, found[:, None])[:, 0]
    assert (best - chosen <= 2 * ROUNDOFF[dtype] * best.abs() + 1e-5).all()


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["input", "weight", "bias"])
def test_what_is_not_finite_wins_and_loses_as_in_torch(special: float, where: str) -> None:
    case = Case(classes=300, features=16, stages=(4, 16), rows=(4,), center=True, basis=1)
    x, weight, bias = case.operands()
    assert bias is not None
    if where == "input":
        x[1, 3] = special
    elif where == "weight":
        weight[[77, 140], 5] = special
    else:
        bias[[77, 140]] = special
    found = ops.staged_argmax(x, weight, bias, *case.tables(weight, bias))
    assert torch.equal(found, F.linear(x, weight, bias).argmax(-1))


def test_huge_tiny_and_zero_inputs() -> None:
    case = Case(classes=300, features=16, stages=(4, 16))
    _, weight, bias = case.operands()
    assert bias is not None
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    x = x * torch.tensor([0.0, 1e-38, 1e-30, 1e18, 1e30, 3e38])[:, None]
    found = ops.staged_argmax(x, weight, bias, *case.tables(weight, bias))
    truth = F.linear(x.double(), weight.double(), bias.double())
    finite = F.linear(x, weight, bias).isfinite().all(-1)
    assert finite.sum() >= 5
    gap = truth.amax(-1) - truth.gather(-1, found[:, None])[:, 0]
    assert (gap[finite] <= 1e-5 * truth.abs().amax(-1)[finite]).all()


def test_a_row_does_not_depend_on_its_batch_or_on_threads() -> None:
    case = Case(classes=2000, features=48, stages=(12, 48), rows=(37,), center=True, basis=2, winners=4, reach=0.5)
    x, *rest = case.arguments()
    assert isinstance(x, Tensor)
    together = ops.staged_topk(x, *rest, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        threaded = ops.staged_topk(x, *rest, 4)
    finally:
        torch.set_num_threads(before)
    alone = [ops.staged_topk(row, *rest, 4) for row in x]
    for place in range(2):
        assert torch.equal(together[place], threaded[place])
        assert torch.equal(together[place], torch.stack([each[place] for each in alone]))


def test_memory_layouts_make_no_difference() -> None:
    case = Case(classes=90, features=20, stages=(20,), rows=(5,), winners=2)
    x, weight, bias = case.operands()
    tables = case.tables(weight, bias)
    expected = ops.staged_topk(x, weight, bias, *tables, 2)
    found = ops.staged_topk(x.t().contiguous().t(), weight.t().contiguous().t(), bias, *tables, 2)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


CALLS = {
    "argmax": ("staged_argmax", Case(stages=(4, 12), center=True, basis=2).arguments()),
    "argmax of one row": ("staged_argmax", Case(rows=(), dtype=torch.bfloat16).arguments()),
    "argmax of no rows": ("staged_argmax", Case(rows=(0,), bias=False).arguments()),
    "topk": ("staged_topk", (*Case(rows=(2, 3), basis=1).arguments(), 4)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*_maybe_guard_rel.*was called on a non-relational:UserWarning")
def test_opcheck(name: str) -> None:
    operator, arguments = CALLS[name]
    torch.library.opcheck(getattr(ops, operator).default, arguments)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(3, 11), "not"),
        (0, torch.zeros(3, 12, dtype=torch.float64), "float64"),
        (2, torch.zeros(39), "bias"),
        (3, torch.zeros(40 * 12, dtype=torch.int8), "codes"),
        (4, torch.zeros(3, 40), "numbers"),
        (5, torch.zeros(2, 11), "center"),
        (6, torch.zeros(12, 11), "basis"),
        (7, torch.zeros(4), "slack"),
        (8, [12, 4], "stages"),
        (8, [13], "stages"),
        (9, [], "reach"),
        (10, 41, "winners"),
        (10, 0, "winners"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(place: int, value: object, message: str) -> None:
    arguments = [*Case().arguments(), 4]
    arguments[place] = value
    with pytest.raises(KernelError, match=message):
        fake_heads.staged_topk(*arguments)  # type: ignore[arg-type] # that is the test
    with pytest.raises(RuntimeError, match="exprune"):
        ops.staged_topk(*arguments)
