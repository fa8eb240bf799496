"""What a fused operator may return: float64 sums, and rigorous bounds on what float32 sums of them can differ by.

A decision is a number ``d``, stop where ``d < 0``. Where ``|d|`` is within the bound of its rounding, either decision
is right; everywhere else there is one. A value must lie in the interval that rounding explains.

A float32 sum of ``m`` products, in any order, with or without fused multiply-adds, errs by at most about
``m * u * sum|a_i * b_i|`` with ``u = 2**-24``; the bounds below add a handful of roundings for what is done to the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_U = 2.0**-24  # half a unit in the last place of float32
_MORE = 16  # roundings that are not of the sum itself: constant, quotient, comparison


@dataclass(frozen=True, eq=False)
class Allowed:
    """What may come out of one call.

    Attributes:
        low: float64, the least value of what is not stopped.
        high: the largest.
        may_stop: it may be exactly zero because of a guard.
        must_stop: it must be.
    """

    low: Tensor
    high: Tensor
    may_stop: Tensor
    must_stop: Tensor

    def refuses(self, value: Tensor) -> Tensor:
        """Where a value is none that may come out: bool, as the output."""
        value = value.double()
        inside = (value >= self.low) & (value <= self.high)
        return ~torch.where(self.must_stop, value == 0, inside | (self.may_stop & (value == 0)))

    @property
    def borderline(self) -> Tensor:
        """Where rounding decides."""
        return self.may_stop & ~self.must_stop

    def map(self, change: Callable[[Tensor], Tensor]) -> Allowed:
        """The same, with all four tensors changed in shape."""
        return Allowed(*map(change, (self.low, self.high, self.may_stop, self.must_stop)))


@dataclass(frozen=True, eq=False)
class _Sum:
    """A sum: its value and a bound on the error of computing it in float32."""

    value: Tensor
    error: Tensor


def _dot(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sum and the sum of absolute values."""
    return F.linear(x, weight), F.linear(x.abs(), weight.abs())


def _activation(z: Tensor, name: str) -> Tensor:
    return {"relu": z.relu(), "relu6": z.clamp(0, 6), "relu_squared": z.relu().square()}[name]


def _rounded(value: Tensor, dtype: torch.dtype, times: int = 1) -> Tensor:
    """A bound on what rounding to a dtype changes."""
    limits = torch.finfo(dtype)
    return times * (value.abs() * (limits.eps / 2) * 1.01 + limits.smallest_normal * limits.eps)


def site(
    rows: Tensor,
    weight: Tensor,
    constants: list[Tensor],
    factors: tuple[Tensor, Tensor] | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
    dtype: torch.dtype,
) -> Allowed:
    """A site over rows [R, F] with weight [out, F], in float64; a convolution gives its patches, channel by channel.

    ``constants`` broadcast to [R, out]; ``factors`` are the estimate's weight [out, F] and a weight that bounds the
    rounding of the way it is computed. The values allowed are those of the operator's output, [R, out].
    """
    constant, constant_size = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for part in constants:
        constant, constant_size = constant + part, constant_size + part.abs()
    z, size = _dot(rows, weight)
    z = z + constant
    error = (weight.shape[1] + _MORE) * _U * (size + constant_size)
    low, high = _activation(z - error, activation), _activation(z + error, activation)
    low, high = low - _rounded(low, torch.float32, 2), high + _rounded(high, torch.float32, 2)
    low, high = low - _rounded(low, dtype), high + _rounded(high, dtype)
    may, must = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(z, dtype=torch.bool)
    for index, seen in enumerate(stages):
        if guard == "none":
            break
        decision = _decision(
            rows, weight, constant, constant_size, factors, seen, block, guard, number,
            None if limits is None else limits[index].double(),
        )  # fmt: skip
        may |= decision.value - decision.error < 0
        must |= decision.value + decision.error < 0
    return Allowed(low, high, may, must)


def _decision(
    rows: Tensor,
    weight: Tensor,
    constant: Tensor,
    constant_size: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    seen: int,
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
) -> _Sum:
    features, terms = weight.shape[1], weight.shape[1] // block
    read = features if factors else seen * block
    estimate, bounding = factors if factors else (weight[:, :read], weight[:, :read])
    partial, size = F.linear(rows[:, :read], estimate), F.linear(rows[:, :read].abs(), bounding.abs())
    roundings = (features + terms if factors else read) + _MORE
    error = roundings * _U * (size + constant_size)
    if guard == "threshold":
        asked = abs(number) if number not in (float("inf"), float("-inf")) else 0.0
        return _Sum(partial / seen + constant / terms - number, error + _MORE * _U * asked)
    if guard == "calibrated":
        assert limits is not None
        return _Sum(partial + constant - limits, error + _MORE * _U * limits.abs())
    if guard == "bound":
        assert limits is not None
        rest_weight, whole_weight = limits
        rest = rows[:, 0 if factors else read :].norm(dim=1, keepdim=True)
        whole = rows.norm(dim=1, keepdim=True)
        lost = (features * torch.finfo(torch.float32).tiny) ** 0.5
        margin = 4 * features * _U * (whole_weight * (whole + lost) + constant.abs())
        reach = rest_weight * (rest + lost)
        return _Sum(partial + constant + reach + margin, error + (features + _MORE) * _U * (reach + margin))
    squares, squares_error = _squares(rows, weight, seen, block)
    mean, mean_size = partial / seen, size / seen
    spread = (squares / seen - mean * mean).clamp_min(0)
    slack = squares_error / seen + 2 * roundings * _U * mean_size * mean_size
    least, most = (spread - slack).clamp_min(0), spread + slack
    if guard == "stats_test":
        base, scale = mean + constant / terms, -number / seen**0.5
        error = roundings * _U * (mean_size + constant_size / terms)
    else:
        base, scale = terms * mean + constant, number * (terms * (terms - seen) / (seen - 1)) ** 0.5
        error = roundings * _U * (terms * mean_size + constant_size)
    ends = torch.stack([base + scale * least.sqrt(), base + scale * most.sqrt()])
    middle, half = (ends[0] + ends[1]) / 2, (ends[0] - ends[1]).abs() / 2
    return _Sum(middle, half + error + _MORE * _U * abs(scale) * most.sqrt())


def _squares(rows: Tensor, weight: Tensor, seen: int, block: int) -> tuple[Tensor, Tensor]:
    """The sum of squared terms and a bound on its error."""
    x, w = rows[:, : seen * block].unflatten(1, (seen, block)), weight[:, : seen * block].unflatten(1, (seen, block))
    terms = torch.einsum("rkb,okb->rok", x, w)
    sizes = torch.einsum("rkb,okb->rok", x.abs(), w.abs()).square().sum(-1)
    return terms.square().sum(-1), (2 * block + seen + _MORE) * _U * sizes


def staged_linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
) -> Allowed:
    """What the operator of this name may return for these arguments."""
    rows, out = x.double().reshape(-1, x.shape[-1]), weight.shape[0]
    constants = [] if bias is None else [bias.double()]
    if residual is not None:
        constants.append(residual.double().reshape(-1, out))
    factors = None
    if down is not None and up is not None:
        factors = (up.double() @ down.double(), up.double().abs() @ down.double().abs())
    allowed = site(rows, weight.double(), constants, factors, stages, block, guard, number, limits, activation, x.dtype)
    return allowed.map(lambda value: value.reshape(*x.shape[:-1], out))


def staged_conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    guard: str,
    number: float,
    limits: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Allowed:
    """What the operator of this name may return for these arguments; one group."""
    assert groups == 1
    out, kernel = weight.shape[0], weight.shape[2:]
    size = [
        (full + 2 * pad - step * (reach - 1) - 1) // jump + 1
        for full, pad, step, reach, jump in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    features, pixels = weight[0].numel(), size[0] * size[1]
    patches = torch.zeros(x.shape[0], features, pixels, dtype=torch.float64)
    if x.shape[0]:
        patches = F.unfold(x.double(), tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    constants = [] if bias is None else [bias.double()]
    if residual is not None:
        constants.append(residual.double().flatten(2).transpose(1, 2).reshape(-1, out))
    factors = None
    if down is not None and up is not None:
        pair = (up.double(), down.double()), (up.double().abs(), down.double().abs())
        whole, bounding = (torch.einsum("orhw,rc->ochw", u, d).flatten(1) for u, d in pair)
        factors = (whole, bounding)
    rows = patches.transpose(1, 2).reshape(-1, features)
    block = kernel[0] * kernel[1]
    allowed = site(
        rows, weight.double().flatten(1), constants, factors, stages, block, guard, number, limits, activation, x.dtype
    )
    return allowed.map(lambda value: value.reshape(x.shape[0], pixels, out).transpose(1, 2).unflatten(2, size))


def staged_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
    weight_out: Tensor,
    bias_out: Tensor | None,
) -> Allowed:
    """What the operator of this name may return for these arguments."""
    hidden = staged_linear_relu(x, weight, bias, None, down, up, stages, block, guard, number, limits, activation)
    return _out(*_ball(hidden), weight_out, bias_out, x.dtype)


def staged_gated_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
    weight_value: Tensor,
    bias_value: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
) -> Allowed:
    """What the operator of this name may return for these arguments; the value may be rounded before it is gated."""
    hidden = staged_linear_relu(x, weight, bias, None, down, up, stages, block, guard, number, limits, activation)
    gate, gate_radius = _ball(hidden)
    value, size = _dot(x.double(), weight_value.double())
    if bias_value is not None:
        value, size = value + bias_value.double(), size + bias_value.double().abs()
    value_radius = (weight.shape[1] + _MORE) * _U * size
    value_radius = value_radius + _rounded(value.abs() + value_radius, x.dtype, 2)
    product = gate * value
    radius = gate.abs() * value_radius + value.abs() * gate_radius + gate_radius * value_radius
    return _out(product, radius + _rounded(product.abs() + radius, x.dtype, 2), weight_out, bias_out, x.dtype)


def _ball(hidden: Allowed) -> tuple[Tensor, Tensor]:
    """Middle and half width of what each hidden unit may be."""
    low, high = hidden.low.masked_fill(hidden.must_stop, 0), hidden.high.masked_fill(hidden.must_stop, 0)
    low, high = (torch.where(hidden.may_stop, end, value) for end, value in ((low.clamp_max(0), low), (high, high)))
    return (low + high) / 2, (high - low) / 2


def _out(hidden: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Allowed:
    out, size = _dot(hidden, weight.double())
    spread = F.linear(radius, weight.double().abs())
    if bias is not None:
        out, size = out + bias.double(), size + bias.double().abs()
    error = spread + (hidden.shape[-1] + _MORE) * _U * (size + spread)
    error = error + _rounded(out.abs() + error, torch.float32, 2) + _rounded(out.abs() + error, dtype)
    never = torch.zeros_like(out, dtype=torch.bool)
    return Allowed(out - error, out + error, never, never)
