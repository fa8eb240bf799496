"""Terms by explicit loops in float64: what the operators are held against. No convolution, no product of matrices."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def double_linear_terms(x: Tensor, weight: Tensor, block: int = 1) -> Tensor:
    """Every term of every pre-activation: [..., K*block] and [out, K*block] -> [..., out, K]."""
    x, weight = x.double(), weight.double()
    terms = []
    for i in range(weight.shape[1] // block):
        term = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=torch.float64)
        for j in range(i * block, (i + 1) * block):
            for o in range(weight.shape[0]):
                term[..., o] += x[..., j] * weight[o, j]
        terms.append(term)
    return torch.stack(terms, -1)


@dataclass(frozen=True)
class Conv:
    """One convolution's sizes; ``channels`` and ``out`` count those of one group and of all."""

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    channels: int = 5
    out: int = 4
    batch: int = 2

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)

    def operands(self, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.batch, self.groups * self.channels, *self.space, generator=generator)
        weight = torch.randn(self.out, self.channels, *self.kernel, generator=generator)
        return x.to(dtype), weight.to(dtype)


CONVS = {
    "conv1d": Conv((9,), (3,), (1,), (1,), (1,)),
    "conv1d strided and dilated": Conv((11,), (2,), (3,), (2,), (2,), channels=3),
    "conv2d": Conv((5, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
    "conv2d all numbers differ": Conv((7, 8), (3, 2), (2, 1), (0, 2), (1, 3), channels=3, out=3),
    "conv2d of two groups": Conv((4, 5), (3, 1), (1, 2), (1, 0), (1, 1), groups=2, channels=3, out=6),
    "conv2d pointwise": Conv((3, 3), (1, 1), (1, 1), (0, 0), (1, 1), channels=9, out=1),
    "conv2d of more terms than are squared at once": Conv((3, 3), (3, 3), (1, 1), (1, 1), (1, 1), channels=19, out=2),
    "conv3d": Conv((3, 4, 3), (2, 3, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2), channels=3, out=2),
    "conv3d of three groups": Conv((3, 3, 2), (2, 2, 2), (1, 1, 1), (1, 0, 1), (1, 1, 1), groups=3, channels=2, out=3),
}


def double_conv_terms(x: Tensor, weight: Tensor, conv: Conv) -> Tensor:
    """Every term of every pre-activation: [N, G*K, *space] and [out, K, *kernel] -> [N, out, *space', K]."""
    x, weight = x.double(), weight.double()
    padded = torch.zeros(*x.shape[:2], *(s + 2 * p for s, p in zip(conv.space, conv.padding, strict=True)))
    padded = padded.double()
    inside = tuple(slice(p, p + s) for s, p in zip(conv.space, conv.padding, strict=True))
    padded[(slice(None), slice(None), *inside)] = x
    sizes = [
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip(conv.space, conv.padding, conv.dilation, conv.kernel, conv.stride, strict=True)
    ]
    terms = torch.zeros(x.shape[0], conv.out, *sizes, conv.channels, dtype=torch.float64)
    for o, i in itertools.product(range(conv.out), range(conv.channels)):
        channel = padded[:, o // (conv.out // conv.groups) * conv.channels + i]
        for offset in itertools.product(*map(range, conv.kernel)):
            window = tuple(
                slice(k * d, k * d + (size - 1) * t + 1, t)
                for k, d, t, size in zip(offset, conv.dilation, conv.stride, sizes, strict=True)
            )
            terms[:, o, ..., i] += channel[(slice(None), *window)] * weight[(o, i, *offset)]
    return terms


def rounding(terms: Tensor, elements: int, dtype: torch.dtype = torch.float32) -> float:
    """How far a sum of these terms in ``dtype`` may be off: elements * eps * the largest sum of magnitudes."""
    if terms.numel() == 0:
        return 0.0
    return elements * torch.finfo(dtype).eps * float(terms.abs().sum(-1).max()) + 1e-30


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    if found.numel():
        off = float((found.double() - expected).abs().max())
        assert off <= tolerance, f"off by {off:.3g}, allowed are {tolerance:.3g}"


def elements_of(weight: Tensor) -> int:
    return math.prod(weight.shape[1:])
