"""Random calls of the fused operators: a frozen description of each, and the arguments that it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.ops import heads
from exprune_fx.ops.native.fake_site import ACTIVATIONS, DTYPES, GUARDS, SQUARES

Arguments = tuple[Any, ...]
X_LAYOUTS = ("contiguous", "transposed", "sliced", "shifted", "expanded")
IMAGE_LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "shifted", "expanded")


@dataclass(frozen=True)
class Site:
    """What linear and convolutional sites share.

    Attributes:
        terms: input features over ``block``, or channels.
        out: neurons.
        stages: terms seen at each test of a prefix head; the rank alone for a principal head; none for no head.
        principal: the head is principal.
        guard: one of `GUARDS`.
        number: the guard's number.
        shrink: what `Bound`'s rest norms are multiplied by, so that it stops more than it may.
        activation: one of `ACTIVATIONS`.
        dtype: of all tensors but limits.
        bias: there is one.
        residual: there is one.
        sparse: the input has been through a ReLU.
        x_layout: how the input lies in memory; so, too, the residual.
        packed: the weights lie as the lowering pass lays them.
        seed: of the values.
    """

    terms: int
    out: int
    stages: tuple[int, ...] = ()
    principal: bool = False
    guard: str = "none"
    number: float = 0.0
    shrink: float = 1.0
    activation: str = "relu"
    dtype: torch.dtype = torch.float32
    bias: bool = True
    residual: bool = False
    sparse: bool = False
    x_layout: str = "contiguous"
    packed: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Linear(Site):
    """A call of ``staged_linear_relu``; with ``hidden_out``, of a feed-forward operator of as many outputs."""

    rows: tuple[int, ...] = (3,)
    block: int = 1
    hidden_out: int = 5

    def arguments(self) -> Arguments:
        """In the operator's order."""
        make = _Maker(self)
        x = make.laid(make.input(*self.rows, self.terms * self.block))
        weight, bias = make.weight(self.out, self.terms * self.block), make.bias(self.out)
        residual = make.laid(make.normal(*self.rows, self.out)) if self.residual else None
        down, up, limits = make.head(weight, self.block)
        numbers = (list(self.stages), self.block, self.guard, self.number, limits, self.activation)
        return (x, weight, bias, residual, down, up, *numbers)

    def call(self, operator: str) -> Arguments:
        """Of the operator of this name."""
        if operator == "staged_linear_relu":
            return self.arguments()
        return self.ffn_arguments() if operator == "staged_ffn" else self.gated_ffn_arguments()

    def ffn_arguments(self) -> Arguments:
        """Of ``staged_ffn``."""
        x, weight, bias, _, *rest = replace(self, residual=False).arguments()
        return (x, weight, bias, *rest, *_Maker(self, 1).second_layer())

    def gated_ffn_arguments(self) -> Arguments:
        """Of ``staged_gated_ffn``."""
        x, weight, bias, _, *rest = replace(self, residual=False).arguments()
        make = _Maker(self, 2)
        value = make.weight(*weight.shape), make.bias(self.out)
        return (x, weight, bias, *rest, *value, *make.second_layer())


@dataclass(frozen=True)
class Conv(Site):
    """A call of ``staged_conv2d_relu``."""

    batch: int = 2
    space: tuple[int, int] = (5, 4)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)

    def call(self, operator: str) -> Arguments:
        """Of the operator of this name."""
        assert operator == "staged_conv2d_relu"
        return self.arguments()

    def arguments(self) -> Arguments:
        """In the operator's order."""
        make = _Maker(self)
        x = make.laid(make.input(self.batch, self.terms, *self.space))
        weight, bias = make.weight(self.out, self.terms, *self.kernel), make.bias(self.out)
        walk = (self.stride, self.padding, self.dilation)
        size = [
            (full + 2 * pad - step * (kernel - 1) - 1) // jump + 1
            for full, kernel, jump, pad, step in zip(self.space, self.kernel, *walk, strict=True)
        ]
        residual = make.laid(make.normal(self.batch, self.out, *size)) if self.residual else None
        down, up, limits = make.head(weight, 1)
        numbers = (list(self.stages), self.guard, self.number, limits)
        return (x, weight, bias, residual, down, up, *numbers, *map(list, walk), 1, self.activation)


class _Maker:
    """Makes a site's tensors, all from one seed."""

    def __init__(self, site: Site, stream: int = 0) -> None:
        self._site = site
        self._generator = torch.Generator().manual_seed(3 * site.seed + stream)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._site.dtype)

    def input(self, *shape: int) -> Tensor:
        x = self.normal(*shape)
        return torch.relu(x) if self._site.sparse else x

    def weight(self, out: int, *rest: int) -> Tensor:
        """Values such that outputs are about 1, in the layout that the lowering pass makes, or in another."""
        weight = self.normal(out, *rest) / math.sqrt(math.prod(rest))
        if weight.dim() == 4:
            return weight.contiguous(memory_format=torch.channels_last) if self._site.packed else weight
        return weight if self._site.packed else weight.t().contiguous().t()

    def bias(self, out: int) -> Tensor | None:
        return self.normal(out) * 0.5 if self._site.bias else None

    def second_layer(self) -> tuple[Tensor, Tensor | None]:
        site = self._site
        assert isinstance(site, Linear)
        weight = self.normal(site.hidden_out, site.out) / math.sqrt(site.out)
        return weight.t().contiguous().t() if site.packed else weight, self.bias(site.hidden_out)

    def head(self, weight: Tensor, block: int) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """``down``, ``up`` and ``limits``."""
        site, down, up = self._site, None, None
        if site.principal:
            basis, _ = torch.linalg.qr(torch.randn(weight.shape[1], site.stages[0], generator=self._generator))
            down = basis.t().contiguous().to(site.dtype)
            up = heads.principal_up(weight, down.t())
            if up.dim() == 4 and site.packed:
                up = up.contiguous(memory_format=torch.channels_last)
        elif site.packed and site.seed % 2 and site.stages and site.guard not in SQUARES:
            order = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
            up = weight[:, : site.stages[0] * block].contiguous(memory_format=order)
        tests = len(site.stages)
        if site.guard == "calibrated":
            return down, up, torch.randn(tests, site.out, generator=self._generator) * 0.5 - 0.2
        if site.guard == "bound":
            factors = None if down is None or up is None else (down, up)
            norms = [heads.bound_norms(weight, seen * block, site.sparse, factors) for seen in site.stages]
            pairs = [torch.stack([rest * site.shrink, whole]) for rest, whole in norms]
            return down, up, torch.stack(pairs) if pairs else None
        return down, up, None

    def laid(self, value: Tensor) -> Tensor:
        """The same values in another layout."""
        layout = self._site.x_layout
        if layout == "channels_last" and value.dim() == 4:
            return value.contiguous(memory_format=torch.channels_last)
        if layout == "transposed" and value.dim() >= 2:
            return value.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "sliced":
            return torch.stack([value, torch.full_like(value, torch.nan)], -1)[..., 0]
        if layout == "shifted":  # contiguous, at an address that is no multiple of a vector's size
            return torch.cat([value.new_full((1,), torch.nan), value.flatten()])[1:].reshape(value.shape)
        if layout == "expanded" and value.dim() >= 2 and value.shape[0]:
            return value[:1].expand(value.shape)
        return value


def _site(draw: st.DrawFn, most_terms: int, layouts: tuple[str, ...]) -> dict[str, Any]:
    terms = draw(st.integers(1, most_terms))
    guard = draw(st.sampled_from(GUARDS))
    principal = guard in ("calibrated", "bound") and draw(st.booleans())
    if principal:
        stages = [draw(st.integers(1, min(terms, 9)))]
    else:
        least = 2 if guard == "finite_population" else 1
        some = guard != "none" and terms > least
        stages = sorted(draw(st.sets(st.integers(least, terms - 1), min_size=1, max_size=3))) if some else []
    if not stages:
        guard = "none"
    # Numbers that float32 holds: a double that is smaller is zero to the operators, and the truth would tell them apart.
    number = {
        "threshold": _floats(0.25) | st.sampled_from([0.0, float("inf"), float("-inf")]),
        "stats_test": _floats(2),
        "finite_population": _floats(2),
    }.get(guard, st.just(0.0))
    return {
        "terms": terms,
        "out": draw(st.integers(1, 40)),
        "stages": tuple(stages),
        "principal": principal,
        "guard": guard,
        "number": draw(number),
        "shrink": draw(st.sampled_from([1.0, 0.2, 0.0])),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "dtype": draw(st.sampled_from(DTYPES)),
        "bias": draw(st.booleans()),
        "residual": draw(st.booleans()),
        "sparse": draw(st.booleans()),
        "x_layout": draw(st.sampled_from(layouts)),
        "packed": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**20)),
    }


def _floats(most: float) -> st.SearchStrategy[float]:
    return st.floats(-most, most, width=32, allow_subnormal=False)


@st.composite
def linears(draw: st.DrawFn) -> Linear:
    """Any call of the linear operators."""
    rows = draw(st.sampled_from([(1,), (), (0,), (2,), (3,), (2, 3), (0, 2), (1, 1), (17,), (33,)]))
    block = draw(st.sampled_from([1, 1, 2, 3, 9]))
    site = _site(draw, 90 // block, X_LAYOUTS)
    return Linear(**site, rows=rows, block=block, hidden_out=draw(st.integers(1, 40)))


@st.composite
def convs(draw: st.DrawFn) -> Conv:
    """Any call of the convolution operator whose output is not empty but for the batch."""

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    kernel, padding, dilation = pair(1, 5), pair(0, 3), pair(1, 3)
    space = tuple(
        max(1, step * (reach - 1) + 1 - 2 * pad) + draw(st.integers(0, 9))
        for reach, pad, step in zip(kernel, padding, dilation, strict=True)
    )
    assert len(space) == 2
    site = _site(draw, 40, IMAGE_LAYOUTS)
    batch = draw(st.sampled_from([1, 1, 2, 3, 0]))
    return Conv(**site, batch=batch, space=space, kernel=kernel, stride=pair(1, 3), padding=padding, dilation=dilation)
