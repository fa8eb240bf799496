"""Every axis rule, on a small model around one op: the free groups are as computed by hand, and numerically exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from exprune_fx.symmetry import symmetries
from exprune_fx.symmetry.rules import RULES
from tests.symmetry.probes import Case, check, free_sizes, normal

aten = torch.ops.aten
VECTOR = normal(2, 3)
IMAGE = normal(2, 3, 6, 6)
SIGNAL = normal(2, 3, 8)
VOLUME = normal(2, 3, 4, 4, 4)
TOKENS = normal(2, 5, 3)
H = ((6, 1),)


def sandwich(name: str, op: Callable[..., Any], free: Any = H, **shapes: Any) -> Case:
    """Linear 3 -> 6, the op, linear 6 -> 4."""

    def function(p: Any, x: torch.Tensor) -> Any:
        return aten.linear.default(op(p, aten.linear.default(x, p.w1, p.b1)), p.w2)

    return Case(name, {"w1": (6, 3), "b1": (6,), "w2": (4, 6), **shapes}, function, (VECTOR,), free, raw=True)


def convs(name: str, op: Callable[..., Any], free: Any = H, x: torch.Tensor = IMAGE, **shapes: Any) -> Case:
    """Convolution 3 -> 6, the op, 1x1 convolution 6 -> 4."""
    n = x.dim() - 2
    conv = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}[n].default

    def function(p: Any, x: torch.Tensor) -> Any:
        return conv(op(p, conv(x, p.w1, p.b1)), p.w2)

    sizes = {"w1": (6, 3, *[3] * n), "b1": (6,), "w2": (4, 6, *[1] * n), **shapes}
    return Case(name, sizes, function, (x,), free, raw=True)


POINTWISE = [
    sandwich("relu", lambda p, h: aten.relu.default(h)),
    sandwich("clamp", lambda p, h: aten.clamp.default(h, 0, 6)),
    sandwich("gelu", lambda p, h: aten.gelu.default(h)),
    sandwich("where", lambda p, h: aten.where.self(aten.gt.Scalar(h, 0), h, aten.exp.default(h))),
    sandwich("add of a vector", lambda p, h: aten.add.Tensor(h, p.v), v=(6,)),
    sandwich("mul of a single number", lambda p, h: aten.mul.Tensor(h, p.v), v=(1,)),
    sandwich("rrelu", lambda p, h: aten.rrelu.default(h)),
    sandwich("prelu per channel", lambda p, h: aten.prelu.default(h, p.v), v=(6,)),
    sandwich("prelu, one slope", lambda p, h: aten.prelu.default(h, p.v), v=(1,)),
    sandwich("glu", lambda p, h: aten.linear.default(aten.glu.default(h), p.v), ((3, 1), (6, 1)), v=(6, 3)),
    sandwich("fill", lambda p, h: aten.add.Tensor(h, aten.full_like.default(h, 2.0))),
    sandwich("numbered", lambda p, h: aten.add.Tensor(h, aten.arange.default(aten.sym_size.int(h, 1))), ()),
]


def _heads(p: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bi,ihd->bhd", x, p.w1)


PRODUCTS = [
    Case("addmm", {"w1": (3, 6), "b": (6,), "w2": (6, 4), "b2": (4,)},
         lambda p, x: aten.addmm.default(p.b2, aten.relu.default(aten.addmm.default(p.b, x, p.w1)), p.w2),
         (VECTOR,), H, raw=True),
    Case("mm", {"w1": (3, 6), "w2": (6, 4)}, lambda p, x: aten.mm.default(aten.mm.default(x, p.w1), p.w2),
         (VECTOR,), H, raw=True),
    Case("mv", {"w1": (3, 6), "w2": (6,)}, lambda p, x: aten.mv.default(aten.mm.default(x, p.w1), p.w2),
         (VECTOR,), H, raw=True),
    Case("bmm: a permutation for each batch", {"w1": (5, 3, 6), "w2": (5, 6, 4)},
         lambda p, x: aten.bmm.default(aten.tanh.default(aten.bmm.default(x, p.w1)), p.w2),
         (normal(5, 2, 3),), ((6, 5),), raw=True),
    Case("baddbmm", {"w1": (5, 3, 6), "w2": (5, 6, 4), "b": (5, 1, 6)},
         lambda p, x: aten.bmm.default(aten.tanh.default(aten.baddbmm.default(p.b, x, p.w1)), p.w2),
         (normal(5, 2, 3),), ((6, 5),), raw=True),
    Case("bmm: one bias for all batches allows one permutation", {"w1": (5, 3, 6), "w2": (5, 6, 4), "b": (6,)},
         lambda p, x: aten.bmm.default(aten.add.Tensor(aten.bmm.default(x, p.w1), p.b), p.w2),
         (normal(5, 2, 3),), H, raw=True),
    Case("matmul", {"w1": (3, 6), "w2": (6, 4)}, lambda p, x: aten.matmul.default(aten.matmul.default(x, p.w1), p.w2),
         (TOKENS,), H, raw=True),
    Case("outer", {"a": (6,), "b": (7,), "w": (7, 4)},
         lambda p, x: aten.add.Tensor(aten.sum.dim_IntList(aten.mm.default(aten.outer.default(p.a, p.b), p.w), [0]), x),
         (normal(4),), ((6, 1), (7, 1)), raw=True),
    Case("bilinear", {"w1": (6, 3), "w2": (5, 3), "w": (4, 6, 5), "b": (4,)},
         lambda p, x: aten.bilinear.default(aten.linear.default(x, p.w1), aten.linear.default(x, p.w2), p.w, p.b),
         (VECTOR,), ((5, 1), (6, 1)), raw=True),
    Case("einsum: heads of head dims", {"w1": (3, 2, 5), "w2": (2, 5, 4)},
         lambda p, x: aten.einsum.default("...hd,hdo->...o", [aten.einsum.default("bi,ihd->bhd", [x, p.w1]), p.w2]),
         (VECTOR,), ((2, 1), (5, 2)), raw=True),
    Case("einsum without an arrow", {"w1": (3, 6), "w2": (6, 4)},
         lambda p, x: aten.einsum.default("ab,bc", [aten.einsum.default("ab,bc", [x, p.w1]), p.w2]),
         (VECTOR,), H, raw=True),
    Case("einsum: a diagonal is told apart", {"w1": (6, 6), "w2": (6, 4)},
         lambda p, x: torch.mm(x * torch.einsum("ii->i", p.w1), p.w2), (normal(2, 1),), ()),
    Case("sum over h while d is there: one d for all h, but an h for each d", {"w1": (3, 2, 5), "w2": (5, 4)},
         lambda p, x: torch.einsum("bhd,do->bo", torch.relu(_heads(p, x)), p.w2), (VECTOR,), ((2, 5), (5, 1))),
    Case("softmax over h: one d for all h, but an h for each d", {"w1": (3, 2, 5), "w2": (2, 5, 4)},
         lambda p, x: torch.einsum("bhd,hdo->bo", torch.softmax(_heads(p, x), 1), p.w2), (VECTOR,), ((2, 5), (5, 1))),
    Case("softmax over h, then over d: one for all", {"w1": (3, 2, 5), "w2": (2, 5, 4)},
         lambda p, x: torch.einsum("bhd,hdo->bo", torch.softmax(_heads(p, x), 1).softmax(2), p.w2),
         (VECTOR,), ((2, 1), (5, 1))),
    Case("products across heads: one permutation for all h", {"w1": (3, 2, 5), "w2": (2, 2, 4)},
         lambda p, x: torch.einsum("bhg,hgo->bo", torch.einsum("bhd,bgd->bhg", *[_heads(p, x)] * 2), p.w2),
         (VECTOR,), ((2, 1), (5, 1))),
]  # fmt: skip

CONVOLUTIONS = [
    convs("conv1d", lambda p, h: aten.relu.default(h), x=SIGNAL),
    convs("conv2d", lambda p, h: aten.relu.default(h)),
    convs("conv3d", lambda p, h: aten.relu.default(h), x=VOLUME),
    convs("depthwise", lambda p, h: aten.conv2d.default(h, p.v, None, [1, 1], [1, 1], [1, 1], 6), v=(6, 1, 3, 3)),
    convs("grouped", lambda p, h: aten.conv2d.default(h, p.v, None, [1, 1], [0, 0], [1, 1], 2),
          ((2, 1), (3, 2), (3, 2)), v=(6, 3, 1, 1)),
    convs("depthwise with a multiplier",
          lambda p, h: aten.conv2d.default(aten.relu.default(aten.conv2d.default(h, p.v, None, [1], [0], [1], 6)), p.u),
          ((2, 6), (6, 1), (6, 1)), v=(12, 1, 2, 2), u=(6, 12, 1, 1)),
    convs("transposed", lambda p, h: aten.conv_transpose2d.input(h, p.v, p.c), ((6, 1), (6, 1)), v=(6, 6, 2, 2), c=(6,)),
    convs("general form", lambda p, h: aten.convolution.default(h, p.v, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
          ((6, 1), (6, 1)), v=(6, 6, 2, 2)),
    Case("a convolution along a free axis tells its positions apart", {"w1": (6, 3), "k": (4, 1, 3), "w2": (4, 24)},
         lambda p, x: F.linear(F.conv1d(F.linear(x, p.w1)[:, None], p.k, padding=1).flatten(1), p.w2),
         (VECTOR,), ((4, 1),)),
    Case("but a kernel of one position does not", {"w1": (6, 3), "k": (4, 1, 1), "w2": (4, 24)},
         lambda p, x: F.linear(torch.relu(F.conv1d(F.linear(x, p.w1)[:, None], p.k)).flatten(1), p.w2),
         (VECTOR,), ((4, 1), (6, 1))),
]  # fmt: skip

STATS: dict[str, Any] = {"g": (6,), "b": (6,), "m": (6,), "var": (6,)}
NORMS = [
    convs("batch norm", lambda p, h: aten.batch_norm.default(h, p.g, p.b, p.m, p.var, False, 0.1, 1e-5, False), **STATS),
    convs("batch norm, native",
          lambda p, h: aten._native_batch_norm_legit_no_training.default(h, p.g, p.b, p.m, p.var, 0.1, 1e-5)[0], **STATS),
    convs("instance norm", lambda p, h: aten.instance_norm.default(h, p.g, p.b, None, None, True, 0.1, 1e-5, False),
          g=(6,), b=(6,)),
    convs("group norm", lambda p, h: aten.group_norm.default(h, 2, p.g, p.b), ((2, 1), (3, 2)), g=(6,), b=(6,)),
    sandwich("layer norm", lambda p, h: aten.layer_norm.default(h, [6], p.g, p.b), g=(6,), b=(6,)),
    sandwich("layer norm, native", lambda p, h: aten.native_layer_norm.default(h, [6], p.g, p.b, 1e-5)[0],
             g=(6,), b=(6,)),
    sandwich("rms norm", lambda p, h: aten.rms_norm.default(h, [6], p.g), g=(6,)),
]  # fmt: skip

REDUCTIONS = [
    sandwich("mean over everything else", lambda p, h: aten.sub.Tensor(h, aten.mean.dim(h, [1], True))),
    sandwich("amax", lambda p, h: aten.sub.Tensor(h, aten.amax.default(h, [1], True))),
    sandwich("max with positions unused", lambda p, h: aten.sub.Tensor(h, aten.max.dim(h, 1, True)[0])),
    sandwich("max with positions used",
             lambda p, h: aten.add.Tensor(aten.mul.Tensor(h, aten.max.dim(h, 1, True)[1]), aten.max.dim(h, 1, True)[0]),
             ()),
    sandwich("maximum of two", lambda p, h: aten.max.other(h, aten.neg.default(h))),
    sandwich("var_mean", lambda p, h: aten.sub.Tensor(h, aten.var_mean.correction(h, [1], keepdim=True)[1])),
    sandwich("argmax", lambda p, h: aten.mul.Tensor(h, aten.argmax.default(h, 1, True)), ()),
    sandwich("softmax", lambda p, h: aten.softmax.int(h, 1)),
    sandwich("cumsum", lambda p, h: aten.cumsum.default(h, 1), ()),
    sandwich("cumsum over the other dim", lambda p, h: aten.cumsum.default(h, 0)),
    sandwich("sort", lambda p, h: aten.sort.default(h, 1)[0], ()),
    sandwich("flip", lambda p, h: aten.flip.default(h, [1]), ()),
    sandwich("tril", lambda p, h: aten.tril.default(h), ()),
]  # fmt: skip

POOLS = [
    convs("max pool", lambda p, h: aten.max_pool2d.default(h, [2, 2])),
    convs("average pool", lambda p, h: aten.avg_pool1d.default(h, [2]), x=SIGNAL),
    convs("adaptive pool", lambda p, h: aten.adaptive_avg_pool3d.default(h, [1, 1, 1]), x=VOLUME),
    convs("upsample", lambda p, h: aten.upsample_nearest2d.vec(h, None, [2.0, 2.0])),
    convs("padding", lambda p, h: aten.constant_pad_nd.default(h, [1, 1, 1, 1])),
    convs("pixel shuffle", lambda p, h: aten.conv2d.default(aten.pixel_shuffle.default(aten.conv2d.default(h, p.v), 2), p.u),
          ((3, 1), (6, 1), (6, 1)), v=(12, 6, 1, 1), u=(6, 3, 1, 1)),
    convs("pixel unshuffle", lambda p, h: aten.conv2d.default(aten.pixel_unshuffle.default(h, 2), p.u),
          ((6, 1), (6, 1)), v=(1,), u=(6, 24, 1, 1)),
    convs("channel shuffle before a convolution over all", lambda p, h: aten.channel_shuffle.default(h, 2)),
    convs("channel shuffle", lambda p, h: aten.conv2d.default(aten.channel_shuffle.default(h, 2), p.v, None, [1, 1], [0, 0], [1, 1], 3),
          ((2, 3), (2, 3), (3, 1)), v=(6, 2, 1, 1)),
    sandwich("padding the axis itself", lambda p, h: aten.constant_pad_nd.default(h, [1, -1]), ()),
]  # fmt: skip

SHAPES = [
    sandwich("view to a product and back, with a softmax within",
             lambda p, h: aten.view.default(aten.softmax.int(aten.view.default(h, [2, 2, 3]), -1), [2, 6]),
             ((2, 1), (3, 2))),
    sandwich("view with a batch merged",
             lambda p, h: aten.view.default(aten.relu.default(aten.view.default(h, [12])), [2, 6])),
    sandwich("view to a product and back, with nothing between that tells heads",
             lambda p, h: aten.view.default(aten.relu.default(aten.view.default(h, [2, 2, 3])), [2, 6])),
    sandwich("views that do not align",
             lambda p, h: aten.view.default(aten.softmax.int(aten.view.default(
                 aten.softmax.int(aten.view.default(h, [2, 2, 3]), -1), [2, 3, 2]), -1), [2, 6]), ()),
    sandwich("permute", lambda p, h: aten.permute.default(aten.permute.default(h, [1, 0]), [1, 0])),
    sandwich("transpose", lambda p, h: aten.transpose.int(aten.transpose.int(h, 0, 1), -1, 0)),
    sandwich("t", lambda p, h: aten.t.default(aten.t.default(h))),
    sandwich("movedim", lambda p, h: aten.movedim.int(aten.movedim.int(h, 0, 1), 1, 0)),
    sandwich("unsqueeze, squeeze", lambda p, h: aten.squeeze.dim(aten.unsqueeze.default(h, 0), 0)),
    sandwich("squeeze all", lambda p, h: aten.squeeze.default(aten.unsqueeze.default(h, -1))),
    sandwich("expand", lambda p, h: aten.mul.Tensor(h, aten.expand.default(p.v, [2, 6])), v=(1, 6)),
    Case("expand makes members that are alike", {"w1": (1, 3), "w2": (4, 6)},
         lambda p, x: aten.linear.default(aten.expand.default(aten.linear.default(x, p.w1), [2, 6]), p.w2),
         (VECTOR,), ((6, 1),), raw=True),
    Case("repeat", {"w1": (6, 3), "w2": (4, 12)},
         lambda p, x: aten.linear.default(aten.repeat.default(aten.linear.default(x, p.w1), [1, 2]), p.w2),
         (VECTOR,), ((2, 6), (6, 1)), raw=True),
    Case("repeat_interleave", {"w1": (6, 3), "w2": (4, 12)},
         lambda p, x: aten.linear.default(
             aten.repeat_interleave.self_int(aten.linear.default(x, p.w1), 2, 1), p.w2),
         (VECTOR,), ((2, 6), (6, 1)), raw=True),
    Case("flatten of channels and positions", {"w1": (6, 3, 3, 3), "w2": (4, 96)},
         lambda p, x: F.linear(torch.relu(F.conv2d(x, p.w1)).flatten(1), p.w2), (IMAGE,), ((6, 1),)),
]  # fmt: skip


def _rotated(h: torch.Tensor) -> torch.Tensor:
    one, other = h.chunk(2, -1)
    return h + torch.cat((-other, one), -1)


PIECES = [
    Case("cat", {"w1": (6, 3), "w2": (5, 3), "w3": (4, 11)},
         lambda p, x: F.linear(torch.cat((F.linear(x, p.w1), F.linear(x, p.w2)), 1), p.w3),
         (VECTOR,), ((5, 1), (6, 1))),
    Case("cat met by a sum cuts the other side", {"w1": (6, 3), "w2": (5, 3), "w3": (4, 11), "w0": (11, 3)},
         lambda p, x: F.linear(torch.cat((F.linear(x, p.w1), F.linear(x, p.w2)), 1) + F.linear(x, p.w0), p.w3),
         (VECTOR,), ((5, 1), (6, 1))),
    Case("cat of three against cat of two", {"a": (4, 3), "b": (4, 3), "c": (4, 3), "d": (6, 3), "e": (6, 3), "w": (4, 12)},
         lambda p, x: F.linear(torch.cat([F.linear(x, w) for w in (p.a, p.b, p.c)], 1)
                               + torch.cat([F.linear(x, w) for w in (p.d, p.e)], 1), p.w),
         (VECTOR,), ((2, 1), (2, 1), (4, 1), (4, 1))),
    Case("stack", {"a": (6, 3), "b": (6, 3), "w": (6, 2, 4)},
         lambda p, x: torch.einsum("bhk,hko->bo", torch.stack((F.linear(x, p.a), F.linear(x, p.b)), 2), p.w),
         (VECTOR,), H),
    Case("split", {"w1": (7, 3), "w2": (4, 3), "w3": (4, 4)},
         lambda p, x: F.linear(F.linear(x, p.w1).split([3, 4], 1)[0], p.w2)
         + F.linear(F.linear(x, p.w1).split([3, 4], 1)[1], p.w3), (VECTOR,), ((3, 1), (4, 1))),
    Case("split and swap", {"w1": (8, 3), "w2": (4, 8)},
         lambda p, x: F.linear(_rotated(F.linear(x, p.w1)), p.w2), (VECTOR,), ((4, 1),)),
    Case("fused projection, unbound", {"w": (30, 3), "o": (4, 10)},
         lambda p, x: F.linear(_attend(*F.linear(x, p.w).view(2, 5, 3, 2, 5).permute(2, 0, 3, 1, 4).unbind(0)), p.o),
         (TOKENS,), ((2, 1), (5, 2), (5, 2))),
    Case("fused projection, selected", {"w": (30, 3), "o": (4, 10)},
         lambda p, x: F.linear(_attend(*[F.linear(x, p.w).view(2, 5, 3, 2, 5).permute(2, 0, 3, 1, 4)[i] for i in range(3)]),
                               p.o),
         (TOKENS,), ((2, 1), (5, 2), (5, 2))),
    Case("fused projection, heads outside, chunked", {"w": (30, 3), "o": (4, 10)},
         lambda p, x: F.linear(_attend(*F.linear(x, p.w).view(2, 5, 2, 15).transpose(1, 2).chunk(3, -1)), p.o),
         (TOKENS,), ((2, 1), (5, 2), (5, 2))),
    Case("a fused projection of which the parts are added", {"w": (30, 3), "o": (4, 10)},
         lambda p, x: F.linear(F.linear(x, p.w).view(2, 5, 3, 10).sum(2), p.o), (TOKENS,), ((3, 10), (10, 1))),
    Case("slice", {"w1": (6, 3), "w2": (4, 4)},
         lambda p, x: F.linear(F.linear(x, p.w1)[:, 1:5], p.w2), (VECTOR,), ((4, 1),)),
    Case("a slice with a step", {"w1": (6, 3), "w2": (4, 3)},
         lambda p, x: F.linear(F.linear(x, p.w1)[:, ::2], p.w2), (VECTOR,), ()),
    Case("select: the one taken is told apart from the others", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1), p.w2) + F.linear(x, p.w1)[:, :1] * F.linear(x, p.w1)[:, 0][:, None],
         (VECTOR,), ((5, 1),)),
    Case("a shift ties all channels", {"w1": (6, 3), "w2": (4, 5)},
         lambda p, x: F.linear(F.linear(x, p.w1)[:, 1:] + F.linear(x, p.w1)[:, :-1], p.w2), (VECTOR,), ()),
]  # fmt: skip


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """[batch, heads, tokens, d] to [batch, tokens, heads * d]."""
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def _project(x: torch.Tensor, w: torch.Tensor, heads: int) -> Any:
    return F.linear(x, w).unflatten(-1, (heads, -1)).transpose(1, 2)


INDEX = torch.tensor([[0, 1, 1, 4], [2, 0, 3, 3]])
QKV = {"q": (10, 3), "k": (10, 3), "v": (14, 3), "o": (4, 14)}
ATTENTION = [
    Case("attention", QKV,
         lambda p, x: F.linear(_attend(*[_project(x, w, 2) for w in (p.q, p.k, p.v)]), p.o),
         (TOKENS,), ((2, 1), (5, 2), (7, 2))),
    Case("causal attention", QKV,
         lambda p, x: F.linear(_attend(*[_project(x, w, 2) for w in (p.q, p.k, p.v)], is_causal=True), p.o),
         (TOKENS,), ((2, 1), (5, 2), (7, 2))),
    Case("attention with a query norm shared by the heads", {**QKV, "g": (5,)},
         lambda p, x: F.linear(_attend(_project(x, p.q, 2) * p.g, _project(x, p.k, 2), _project(x, p.v, 2)), p.o),
         (TOKENS,), ((2, 1), (5, 1), (7, 2))),
    Case("attention with a slope for each head", QKV,
         lambda p, x: F.linear(_attend(_project(x, p.q, 2) * p.slope, _project(x, p.k, 2), _project(x, p.v, 2)), p.o),
         (TOKENS,), ((5, 2), (7, 2)), constants={"slope": torch.tensor([0.5, 0.25])[:, None, None].double()}),
    Case("grouped queries", {"q": (30, 3), "k": (10, 3), "v": (10, 3), "o": (4, 30)},
         lambda p, x: F.linear(
             _attend(_project(x, p.q, 6), _project(x, p.k, 2), _project(x, p.v, 2), enable_gqa=True), p.o),
         (TOKENS,), ((2, 1), (3, 2), (5, 2), (5, 2))),
]  # fmt: skip

INDEXING = [
    Case("embedding", {"e": (7, 6), "w": (4, 6)}, lambda p, i: F.linear(F.embedding(i, p.e), p.w),
         (torch.tensor([[0, 3], [6, 2]]),), H),
    Case("index_select of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1)[0].index_select(0, INDEX[0]), p.w2), (TOKENS,), H),
    Case("index_select of the axis", {"w1": (6, 3), "w2": (4, 4)},
         lambda p, x: F.linear(F.linear(x, p.w1).index_select(1, INDEX[0]), p.w2), (VECTOR,), ()),
    Case("index of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1)[:, INDEX], p.w2), (TOKENS,), H),
    Case("index of the axis", {"w1": (6, 3), "w2": (4, 4)},
         lambda p, x: F.linear(F.linear(x, p.w1)[:, INDEX[1]], p.w2), (VECTOR,), ()),
    Case("gather of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1)[0].gather(0, INDEX[0][:, None].expand(-1, 6)), p.w2), (TOKENS,), H),
    Case("gather along the axis", {"w1": (6, 3), "w2": (4, 4)},
         lambda p, x: F.linear(F.linear(x, p.w1).gather(1, INDEX), p.w2), (VECTOR,), ()),
    Case("scatter_add of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(torch.zeros(5, 6, dtype=torch.float64).scatter_add(
             0, INDEX[0][:, None].expand(-1, 6), F.linear(x, p.w1)[0, :4]), p.w2), (TOKENS,), H),
    Case("scatter along the axis", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1).scatter(1, INDEX, 0.0), p.w2), (VECTOR,), ()),
    Case("index_add of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(torch.zeros(5, 6, dtype=torch.float64).index_add(0, INDEX[0], F.linear(x, p.w1)[0, :4]),
                               p.w2), (TOKENS,), H),
    Case("index_put of rows", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(torch.zeros(5, 6, dtype=torch.float64).index_put((INDEX[1],), F.linear(x, p.w1)[0, :4]),
                               p.w2), (TOKENS,), H),
]  # fmt: skip

CONSTANTS = [
    Case("a constant that varies pins", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1) * p.c, p.w2), (VECTOR,), (), constants={"c": normal(6)}),
    Case("a constant that does not vary does not", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: F.linear(F.linear(x, p.w1) * p.c, p.w2), (VECTOR,), H, constants={"c": torch.full((6,), 2.0)}),
    Case("a weight added at an arange", {"w1": (6, 3), "w2": (4, 6), "e": (6,)},
         lambda p, x: F.linear(F.linear(x, p.w1) + p.e[torch.arange(6)], p.w2), (VECTOR,), ()),
    Case("tied embedding and head", {"e": (7, 6), "w": (6, 6)},
         lambda p, i: F.linear(F.embedding(i, p.e) + F.linear(F.embedding(i, p.e), p.w), p.e),
         (torch.tensor([[0, 3], [6, 2]]),), H),
    Case("shared weight of a free square", {"w1": (6, 3), "w": (6, 6), "w2": (4, 6)},
         lambda p, x: F.linear(torch.relu(F.linear(torch.relu(F.linear(F.linear(x, p.w1), p.w)), p.w)), p.w2), (VECTOR,), H),
    Case("no rule: pinned", {"w1": (6, 3), "w2": (4, 6)},
         lambda p, x: aten.linear.default(aten.renorm.default(aten.linear.default(x, p.w1), 2, 0, 1.0), p.w2),
         (VECTOR,), (), raw=True),
]  # fmt: skip

CASES = [
    *POINTWISE, *PRODUCTS, *CONVOLUTIONS, *NORMS, *REDUCTIONS, *POOLS, *SHAPES, *PIECES, *ATTENTION, *INDEXING, *CONSTANTS,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_free_groups_are_those_computed_by_hand_and_exact(case: Case) -> None:
    check(case)


def test_every_rule_is_tried() -> None:
    """By the rule's function: ops that share a rule need not all be tried."""
    used = {RULES[node.target] for case in CASES for node in case.graph().graph.nodes if node.target in RULES}
    missing = sorted(f"{rule.__module__}.{rule.__name__}" for rule in set(RULES.values()) - used)
    assert missing == []


def test_unknown_op_says_so() -> None:
    case = CONSTANTS[-1]
    report = symmetries(case.graph())
    assert "aten.renorm.default, which has no symmetry rule" in report.group_of("w1", 0).reason


def test_inputs_and_outputs_are_named_in_the_reason() -> None:
    report = symmetries(POINTWISE[0].graph())
    assert report.group_of("w1", 1).reason == "is axis 1 of the model's input x0"
    assert report.group_of("w2", 0).reason.startswith("is axis 1 of the model's output")


def test_dynamic_sizes_stay_symbolic() -> None:
    """Batch and tokens are symbols; heads are factors of the static width beside them."""
    from exprune_fx.graph.capture import capture
    from tests.symmetry.probes import Probe, assert_invariant

    case = ATTENTION[0]
    dynamic = torch.export.Dim.DYNAMIC
    gm = capture(Probe(case.shapes, case.function, {}).eval(), case.args, dynamic_shapes=(({0: dynamic, 1: dynamic},),))
    report = symmetries(gm)
    assert free_sizes(report) == case.free
    assert_invariant(gm, report, (normal(3, 7, 3),))
    assert math.prod(group.order for group in report.free) == 2 * 120**2 * 5040**2
