"""guard_*: against formulas typed independently, and Bound against the float64 truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

import exprune_fx.ops  # noqa: F401 - registers the operators
from exprune_fx.guards import FinitePopulation, StatsTest
from exprune_fx.ops import heads
from tests.ops.truths import CONVS, Conv, double_conv_terms, double_linear_terms

ops = torch.ops.exprune
Doubles = NDArray[np.float64]
NEAR = 1e-4  # share of the compared quantity: float32 sums of a dozen terms decide alike further away than this


def _terms(seed: int, terms: int) -> tuple[Tensor, Tensor, Doubles]:
    """Terms [500, K] float32, what is known [500], and the terms in float64."""
    generator = torch.Generator().manual_seed(seed)
    xi = torch.randn(500, terms, generator=generator) * 2 - 0.3
    return xi, torch.randn(500, generator=generator), xi.double().numpy()


def _assert_same_decisions(stopped: Tensor, left: Doubles, right: Doubles) -> None:
    """``left < right`` is what was decided, but for rounding; both answers occur."""
    clear = np.abs(left - right) > NEAR * (np.abs(left) + np.abs(right))
    assert clear.mean() > 0.98
    assert (stopped.numpy() == (left < right))[clear].all()
    assert 0.02 < stopped.double().mean() < 0.98


def _head(xi: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    return xi[:, :seen].sum(1), xi[:, :seen].square().sum(1)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.2])
def test_threshold_compares_the_mean(known: bool, threshold: float) -> None:
    xi, c, exact = _terms(1, 12)
    stopped = ops.guard_threshold(_head(xi, 5)[0], c if known else None, 5, 12, threshold)
    left = exact[:, :5].mean(1) + (c.double().numpy() / 12 if known else 0)
    _assert_same_decisions(stopped, left, np.full_like(left, threshold))


def test_thresholds_without_end_always_or_never_stop() -> None:
    sums = torch.tensor([-1e30, 0.0, 1e30])
    assert ops.guard_threshold(sums, None, 2, 4, math.inf).all()
    assert not ops.guard_threshold(sums, None, 2, 4, -math.inf).any()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seen", [1, 4, 12])
def test_stats_test_is_the_papers_test(known: bool, alpha: float, seen: int) -> None:
    xi, c, exact = _terms(2, 12)
    stopped = ops.guard_stats_test(*_head(xi, seen), c if known else None, seen, 12, StatsTest(alpha).quantile)
    m = exact[:, :seen].mean(1) + (c.double().numpy() / 12 if known else 0)
    if seen == 1:  # no spread: the sign decides
        _assert_same_decisions(stopped, m, np.zeros_like(m))
        return
    v = exact[:, :seen].var(1)
    _assert_same_decisions(stopped, m / np.sqrt(v / seen), np.full_like(m, stats.norm.ppf(alpha)))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("seen", [2, 7, 12])
def test_finite_population_is_the_test_without_replacement(known: bool, alpha: float, seen: int) -> None:
    xi, c, exact = _terms(3, 12)
    guard = FinitePopulation(alpha)
    stopped = ops.guard_finite_population(*_head(xi, seen), c if known else None, seen, 12, guard.quantile)
    estimate = 12 * exact[:, :seen].mean(1) + (c.double().numpy() if known else 0)
    spread = exact[:, :seen].std(1, ddof=1) * 12 * np.sqrt((1 - seen / 12) / seen)
    _assert_same_decisions(stopped, estimate, -stats.norm.isf(alpha) * spread)


def test_the_spread_without_replacement_is_that_of_drawing_prefixes() -> None:
    """Over random orders of one population, s^2 * K(K-n)/n estimates the variance of K*S/n without bias."""
    population = np.random.default_rng(0).gamma(1.0, size=20)
    orders = np.random.default_rng(1).permuted(np.tile(population, (40_000, 1)), axis=1)
    for seen in (2, 8, 19):
        prefix = orders[:, :seen]
        observed = (20 * prefix.mean(1)).var()
        claimed = (prefix.var(1, ddof=1) * 20 * (20 - seen) / seen).mean()
        assert claimed == pytest.approx(observed, rel=0.04)  # 40,000 draws: two standard errors are below 3 %
        # and the operator compares with just that spread: the alpha quantile is where it flips
        sums, squares = (torch.from_numpy(np.atleast_1d(a.sum())) for a in (prefix[0], prefix[0] ** 2))
        spread = math.sqrt(prefix[0].var(ddof=1) * 20 * (20 - seen) / seen)
        for factor, expected in ((1.001, True), (0.999, False)):
            c = torch.tensor([-20 * prefix[0].mean() - 1.5 * spread * factor])
            assert ops.guard_finite_population(sums, squares, c, seen, 20, 1.5).item() is expected


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), terms=st.integers(2, 30), alpha=st.floats(0.001, 0.5))
def test_finite_population_is_exact_when_all_is_seen(seed: int, terms: int, alpha: float) -> None:
    xi, c, exact = _terms(seed, terms)
    z = exact.sum(1) + c.double().numpy()
    quantile = FinitePopulation(alpha).quantile
    stopped = ops.guard_finite_population(*_head(xi.double(), terms), c.double(), terms, terms, quantile).numpy()
    clear = np.abs(z) > 1e-9
    assert (stopped == (z < 0))[clear].all()


def test_calibrated_compares_each_neuron_with_its_own_threshold() -> None:
    generator = torch.Generator().manual_seed(5)
    partial, c = torch.randn(2, 3, 4, 5, generator=generator), torch.randn(2, 3, 4, 5, generator=generator)
    thresholds = torch.tensor([-0.5, 0.0, 0.7])
    stopped = ops.guard_calibrated(partial, c, thresholds.reshape(3, 1, 1))
    for j in range(3):
        assert torch.equal(stopped[:, j], (partial + c)[:, j] < thresholds[j])
    rows = partial[..., 0].mT
    assert torch.equal(
        ops.guard_calibrated(rows, None, thresholds),
        torch.stack([rows[..., j] < t for j, t in enumerate(thresholds)], -1),
    )
    assert not ops.guard_calibrated(partial, None, torch.tensor(-math.inf)).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_never_stops(bad: float) -> None:
    s, q, one = torch.tensor([bad]), torch.tensor([bad]), torch.ones(1)
    assert not ops.guard_threshold(s, None, 2, 4, 0.0)
    assert not ops.guard_stats_test(s, q, None, 2, 4, -1.0)
    assert not ops.guard_finite_population(s, q, None, 2, 4, 1.0)
    assert not ops.guard_calibrated(s, None, one)
    assert not ops.guard_bound(s, None, one, one, one, one, 4)


# --- Bound: whenever it stops, the exact pre-activation is not positive ---------------------------------------------


def _bound_linear(x: Tensor, weight: Tensor, constant: Tensor | None, seen: int, nonnegative: bool) -> Tensor:
    terms = weight.shape[1]
    stopped: Tensor = ops.guard_bound(
        ops.partial_linear(x, weight, 0, seen),
        constant,
        heads.rest_weight_norm(weight, seen, nonnegative).to(torch.float32),
        ops.input_norm_linear(x, seen, terms),
        heads.weight_norm(weight).to(torch.float32),
        ops.input_norm_linear(x, 0, terms),
        terms,
    )
    return stopped


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    terms=st.integers(2, 40),
    share=st.floats(0, 1),
    scale=st.sampled_from([1e-30, 1e-22, 1e-12, 1.0, 1e8]),
    shape=st.sampled_from(["random", "aligned", "cancelling", "one large"]),
    nonnegative=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@example(seed=0, terms=3, share=0.0, scale=1e-30, shape="random", nonnegative=False, dtype=torch.float32)  # x^2 = 0
def test_bound_is_sound(
    seed: int, terms: int, share: float, scale: float, shape: str, nonnegative: bool, dtype: torch.dtype
) -> None:
    """Adversarial: ``c`` is put within a few ulps of where the exact sum, or the bound, changes its sign."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, terms, generator=generator)
    x = torch.randn(64, terms, generator=generator)
    if shape == "aligned":  # Cauchy-Schwarz is tight: x_rest is a multiple of one row of w_rest
        x = weight[torch.arange(64) % 8] * (1 + 1e-6 * x)
    elif shape == "cancelling":
        x[:, ::2] *= 1e4
        x[:, 1::2] = -x[:, ::2][:, : x[:, 1::2].shape[1]] * (1 + 1e-6 * torch.rand(1, generator=generator))
    elif shape == "one large":
        x[:, -1] *= 1e5
    x = (x.abs() if nonnegative else x) * (scale if dtype is torch.float32 else 1.0)
    x, weight = x.to(dtype), weight.to(dtype)
    seen = max(1, min(terms - 1, round(share * terms)))
    exact = double_linear_terms(x, weight).sum(-1)
    nudge = 1 + 4 * torch.finfo(torch.float32).eps * torch.randn(exact.shape, generator=generator)
    reach = (
        ops.partial_linear(x, weight, 0, seen).double()
        + heads.rest_weight_norm(weight, seen, nonnegative) * ops.input_norm_linear(x, seen, terms).double()
    )
    for constant in (-exact * nudge, -reach * nudge, -exact.abs() * 1.5):
        c = constant.float()
        stopped = _bound_linear(x, weight, c, seen, nonnegative)
        z = exact + c.double()
        assert not (stopped & (z > 0)).any(), f"stopped at {z[stopped & (z > 0)].max():.3g}"


def test_bound_stops_what_it_can() -> None:
    """It is no trivial rule: it stops clearly negative neurons, more of them where inputs are known to be >= 0."""
    generator = torch.Generator().manual_seed(2)
    x, weight = torch.randn(200, 32, generator=generator).abs(), torch.randn(50, 32, generator=generator)
    c = torch.full((50,), -3.0)
    exact = double_linear_terms(x, weight).sum(-1) + c
    signed, positive = (_bound_linear(x, weight, c, 16, nonnegative) for nonnegative in (False, True))
    assert (positive | ~signed).all()
    assert 0 < signed.sum() < positive.sum() < (exact <= 0).sum()
    assert positive.double().mean() > 0.02


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("conv", CONVS.values(), ids=CONVS.keys())
def test_bound_of_a_convolution_is_sound(conv: Conv, nonnegative: bool) -> None:
    seen = max(1, conv.channels // 2)
    stops = 0
    for seed in range(3):
        x, weight = conv.operands(seed)
        x = x.abs() if nonnegative else x
        exact = double_conv_terms(x, weight, conv).sum(-1)
        partial = ops.partial_conv(x, weight, *conv.geometry, conv.groups, 0, seen)
        sizes = (list(conv.kernel), *conv.geometry, conv.groups, conv.out // conv.groups)
        per_output = [-1, *[1] * len(conv.space)]
        rest = heads.rest_weight_norm(weight, seen, nonnegative).float().reshape(per_output)
        rest_x = ops.input_norm_conv(x, *sizes, seen, conv.channels)
        whole, whole_x = (
            heads.weight_norm(weight).float().reshape(per_output),
            ops.input_norm_conv(x, *sizes, 0, conv.channels),
        )
        nudge = 1 + 1e-6 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(seed))
        for constant in (-exact * nudge, -(partial + rest * rest_x) * nudge, -1.5 * (partial.abs() + rest * rest_x)):
            c = constant.float()
            stopped = ops.guard_bound(partial, c, rest, rest_x, whole, whole_x, weight[0].numel())
            assert not (stopped & (exact + c.double() > 0)).any()
            stops += int(stopped.sum())
    assert stops > 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 5),
    condition=st.sampled_from([1.0, 1e3, 1e5]),
    nonnegative=st.booleans(),
)
def test_bound_of_a_principal_head_is_sound(seed: int, rank: int, condition: float, nonnegative: bool) -> None:
    """Also in an ill-conditioned basis, where the head itself rounds much more than the sum that it estimates."""
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(64, 6, generator=generator), torch.randn(8, 6, generator=generator)
    x = x.abs() if nonnegative else x
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q * torch.logspace(0, math.log10(condition), 6)
    down, lift = basis[:rank], torch.linalg.pinv(basis.double())[:, :rank].float()
    up = heads.principal_up(weight, lift)
    partial = ops.principal_linear(x, down, up)
    rest = heads.principal_rest_norm(weight, down, up, nonnegative)
    margin = heads.principal_margin_norm(weight, down, up)
    norm = ops.input_norm_linear(x, 0, 6)
    exact = double_linear_terms(x, weight).sum(-1)
    for constant in (-exact * (1 + 1e-6 * torch.randn(64, 8, generator=generator)), -exact - 1e-4 * exact.abs()):
        c = constant.float()
        stopped = ops.guard_bound(partial, c, rest.float(), norm, margin.float(), norm, 6)
        assert not (stopped & (exact + c.double() > 0)).any()


def test_bound_of_a_principal_head_that_cancels_is_sound() -> None:
    """The head leaves nothing out, yet rounds by far more than eps of the sum: 1e4 * x - (1e4 - w) * x."""
    generator = torch.Generator().manual_seed(4)
    x, large = torch.randn(256, 6, generator=generator), 1e4 * torch.randn(6, generator=generator)
    down = torch.stack([large, large + torch.randn(6, generator=generator) / 8])
    up = torch.tensor([[-1.0, 1.0]])
    weight = (down[1] - down[0]).unsqueeze(0)  # exact: the two are close
    rest, margin = heads.principal_rest_norm(weight, down, up, False), heads.principal_margin_norm(weight, down, up)
    assert rest.item() == 0
    norm, exact = ops.input_norm_linear(x, 0, 6), double_linear_terms(x, weight).sum(-1)
    c = (-exact + 1e-5).float()
    assert not ops.guard_bound(ops.principal_linear(x, down, up), c, rest.float(), norm, margin.float(), norm, 6).any()
    assert ops.guard_bound(ops.principal_linear(x, down, up), c - 1, rest.float(), norm, margin.float(), norm, 6).any()
