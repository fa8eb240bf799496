"""Random small models, as programs: a list of instructions that every list of integers spells.

An instruction is an operation and a few small integers, read modulo what is possible where it stands (which value,
how many channels, how many groups), so that every drawn list is a valid model and hypothesis shrinks by dropping
instructions and lowering integers. Values are shapes without the batch: (C, H, W), (T, D) or (D,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

Shape = tuple[int, ...]
INPUTS: tuple[Shape, ...] = ((5,), (3, 4, 4), (2, 6, 5), (4, 6))
WIDTHS = (4, 6, 8, 5, 3, 12)
LARGEST = 400  # numbers a sample: keeps an example's run time far below its export time


@dataclass(frozen=True)
class Instruction:
    """One operation on the value `a` places back, with `b` another value or a variant, and a size `c`."""

    op: str
    a: int = 0
    b: int = 0
    c: int = 0


@dataclass(frozen=True)
class Program:
    """A model: the input's index, the instructions, and how the last value becomes the output."""

    input: int
    instructions: tuple[Instruction, ...]
    readout: int = 0

    @property
    def input_shape(self) -> Shape:
        return INPUTS[self.input % len(INPUTS)]


@dataclass
class Step:
    """An instruction made concrete: which values it reads, the layer that it owns, and what it computes."""

    text: str
    reads: tuple[int, ...]
    compute: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    shapes: tuple[Shape, ...]
    layer: nn.Module | None = None


@dataclass
class Builder:
    """Values so far (shapes), and the steps that made them."""

    values: list[Shape]
    steps: list[Step] = field(default_factory=list)

    def pick(self, back: int, accept: Callable[[Shape], bool] = lambda _: True, partner: int = -1) -> int | None:
        """The `back`-th value (cyclic) of those accepted: unread ones first, newest first, `partner` itself last."""
        read = {k for step in self.steps for k in step.reads}
        choices = [i for i in range(len(self.values)) if accept(self.values[i])]
        choices.sort(key=lambda i: (i == partner, i in read, -i))
        return choices[back % len(choices)] if choices else None

    def unread(self) -> list[int]:
        """The values that no step reads, the input left out."""
        read = {k for step in self.steps for k in step.reads}
        return [k for k in range(1, len(self.values)) if k not in read]

    def back(self, value: int) -> int:
        """The `back` with which `pick` finds this value."""
        read = {k for step in self.steps for k in step.reads}
        return sorted(range(len(self.values)), key=lambda i: (i in read, -i)).index(value)

    def add(
        self,
        text: str,
        reads: tuple[int, ...],
        compute: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
        *shapes: Shape,
        layer: nn.Module | None = None,
    ) -> None:
        if all(math.prod(shape) <= LARGEST for shape in shapes) or len(self.values) == 1:
            self.steps.append(Step(text, reads, compute, shapes, layer))
            self.values.extend(shapes)


def divisors(number: int) -> list[int]:
    return [k for k in range(1, number + 1) if number % k == 0]


def feature_dim(shape: Shape) -> int:
    """The dimension (batch counted) of the features: channels of an image, the last of anything else."""
    return 1 if len(shape) == 3 else len(shape)


def features(shape: Shape) -> int:
    return shape[feature_dim(shape) - 1]


def with_features(shape: Shape, width: int) -> Shape:
    k = feature_dim(shape) - 1
    return (*shape[:k], width, *shape[k + 1 :])


class Scale(nn.Module):
    """A parameter per feature, broadcast to the value."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features(shape), *(1 for _ in shape[feature_dim(shape) :])))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of an image, through channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over the tokens of (T, D) with a fused qkv."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))
        z: torch.Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))
        return z


# The first four are those that the library stages.
ACTIVATIONS: tuple[tuple[str, Callable[[torch.Tensor], torch.Tensor]], ...] = (
    ("relu", F.relu),
    ("relu6", F.relu6),
    ("squared_relu", lambda x: F.relu(x).square()),
    ("relu_", lambda x: F.relu_(x * 1.0)),
    ("gelu", F.gelu),
    ("sigmoid", torch.sigmoid),
)


def _mix(b: Builder, i: Instruction) -> None:
    """Linear, or convolution with kernel, stride, padding and groups by `b`."""
    at = b.pick(i.a)
    assert at is not None
    shape = b.values[at]
    width = WIDTHS[i.c % len(WIDTHS)]
    layer: nn.Module
    if len(shape) != 3:
        layer = nn.Linear(features(shape), width, bias=i.b % 2 == 0)
        b.add(
            f"linear[{features(shape)}->{width}, bias={i.b % 2 == 0}]", (at,), layer, (*shape[:-1], width), layer=layer
        )
        return
    channels, size = shape[0], min(shape[1:])
    kernel = 3 if (i.b % 2 and size >= 3) else 1
    stride = 2 if (i.b // 2 % 2 and size >= 2) else 1
    groups = divisors(channels)[i.b // 4 % len(divisors(channels))]
    padding = (kernel // 2) * (i.b % 3 != 0)
    width = width if width % groups == 0 else groups * (1 + width % 3)
    layer = nn.Conv2d(channels, width, kernel, stride, padding, groups=groups, bias=i.b % 5 != 0)
    spatial = [(s + 2 * padding - kernel) // stride + 1 for s in shape[1:]]
    text = f"conv[{channels}->{width}, k={kernel}, s={stride}, p={padding}, g={groups}, bias={i.b % 5 != 0}]"
    b.add(text, (at,), layer, (width, *spatial), layer=layer)


def _norm(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a)
    assert at is not None
    shape = b.values[at]
    width = features(shape)
    layer: nn.Module
    if i.b % 3 == 0 and len(shape) != 2:
        layer, text = (nn.BatchNorm1d(width) if len(shape) == 1 else nn.BatchNorm2d(width)), "batch_norm"
    elif i.b % 3 == 1 and len(shape) != 2:
        # Norm over one number gives the bias whatever the number is: nothing after it would test anything.
        several = [k for k in divisors(width) if math.prod(shape) > k] or [1]
        groups = several[i.c % len(several)]
        layer, text = nn.GroupNorm(groups, width), f"group_norm[{groups}]"
    else:
        layer, text = (ChannelLayerNorm(width) if len(shape) == 3 else nn.LayerNorm(width)), "layer_norm"
    b.add(text, (at,), layer, shape, layer=layer)


def _activate(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a)
    assert at is not None
    name, function = ACTIVATIONS[i.b % len(ACTIVATIONS)]
    b.add(name, (at,), function, b.values[at])


def _block(b: Builder, i: Instruction) -> None:
    """A mix and one of the first four activations on it."""
    before = len(b.values)
    _mix(b, i)
    if len(b.values) > before:
        name, function = ACTIVATIONS[i.b % 4]
        b.add(name, (before,), function, b.values[before])


def _binary(b: Builder, i: Instruction) -> None:
    """Add, multiply, or gate, with another value of the same shape (or the same one)."""
    at = b.pick(i.a)
    assert at is not None
    other = b.pick(i.b, lambda s: s == b.values[at], at)
    assert other is not None
    name, function = (
        ("add", torch.add),
        ("gate", lambda x, y: F.relu(x) * y),
        ("sub", torch.sub),
        ("mul", torch.mul),
    )[i.c % (4 if other != at else 2)]  # x - x is zero for every permutation
    b.add(name, (at, other), function, b.values[at])


def _concat(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a)
    assert at is not None
    shape = b.values[at]
    other = b.pick(i.b, lambda s: with_features(s, 1) == with_features(shape, 1), at)
    assert other is not None
    dim = feature_dim(shape)
    width = features(shape) + features(b.values[other])
    b.add("concat", (at, other), lambda x, y: torch.cat((x, y), dim), with_features(shape, width))


def _chunk(b: Builder, i: Instruction) -> None:
    """Split the features in halves, or cut them at `c`."""
    at = b.pick(i.a, lambda s: features(s) > 1)
    if at is None:
        return
    shape, dim = b.values[at], feature_dim(b.values[at])
    width = features(shape)
    first = width // 2 if i.b % 2 == 0 and width % 2 == 0 else 1 + i.c % (width - 1)
    sizes = [first, width - first]
    shapes = [with_features(shape, s) for s in sizes]
    b.add(f"split{sizes}", (at,), lambda x: torch.split(x, sizes, dim), *shapes)


def _scale(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a)
    assert at is not None
    if i.b % 2:
        factor = 0.5 + i.c % 3
        b.add(f"times[{factor}]", (at,), lambda x: x * factor, b.values[at])
        return
    layer = Scale(b.values[at])
    b.add("scale", (at,), layer, b.values[at], layer=layer)


def _pool(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a, lambda s: len(s) == 3 and min(s[1:]) >= 2)
    if at is None:
        return
    channels, height, width = b.values[at]
    pool = F.max_pool2d if i.b % 2 == 0 else F.avg_pool2d
    kernel, stride, padding = ((2, 2, 0), (3, 1, 1), (3, 2, 1), (2, 1, 0))[i.c % 4]
    spatial = [(s + 2 * padding - kernel) // stride + 1 for s in (height, width)]
    text = f"{pool.__name__}[k={kernel}, s={stride}, p={padding}]"
    b.add(text, (at,), lambda x: pool(x, kernel, stride, padding), (channels, *spatial))


def _reshape(b: Builder, i: Instruction) -> None:
    """Flatten, average away positions, split features into two axes, transpose, or shuffle channels."""
    at = b.pick(i.a)
    assert at is not None
    shape = b.values[at]
    if len(shape) == 1:
        parts = divisors(shape[0])[i.c % len(divisors(shape[0]))]
        b.add(f"view[{parts}, -1]", (at,), lambda x: x.view(-1, parts, shape[0] // parts), (parts, shape[0] // parts))
    elif i.b % 4 == 0:
        b.add("flatten", (at,), lambda x: torch.flatten(x, 1), (math.prod(shape),))
    elif i.b % 4 == 1:
        dims = [2, 3] if len(shape) == 3 else [1]
        b.add(f"mean{dims}", (at,), lambda x: x.mean(dims), (features(shape),))
    elif len(shape) == 2:
        b.add("transpose", (at,), lambda x: x.transpose(1, 2), (shape[1], shape[0]))
    elif i.b % 4 == 2:
        b.add("tokens", (at,), lambda x: x.flatten(2).transpose(1, 2), (math.prod(shape[1:]), shape[0]))
    else:
        groups = divisors(shape[0])[i.c % len(divisors(shape[0]))]
        b.add(
            f"shuffle[{groups}]",
            (at,),
            lambda x: x.unflatten(1, (groups, shape[0] // groups)).transpose(1, 2).flatten(1, 2),
            shape,
        )


def _attention(b: Builder, i: Instruction) -> None:
    at = b.pick(i.a, lambda s: len(s) == 2)
    if at is None:
        return
    tokens, dim = b.values[at]
    heads = divisors(dim)[i.c % len(divisors(dim))]
    layer = Attention(dim, heads)
    b.add(f"attention[heads={heads}]", (at,), layer, (tokens, dim), layer=layer)


OPERATIONS: dict[str, Callable[[Builder, Instruction], None]] = {
    "block": _block,
    "activate": _activate,
    "mix": _mix,
    "binary": _binary,
    "norm": _norm,
    "concat": _concat,
    "chunk": _chunk,
    "reshape": _reshape,
    "pool": _pool,
    "scale": _scale,
    "attention": _attention,
}


def _read_out(b: Builder, kind: int) -> tuple[int, ...]:
    """Make outputs from all values that nothing reads: as they are, or through one more layer that hides them.

    Returns the numbers of the values that the model returns.
    """
    leaves = b.unread()
    outputs = []
    for leaf in leaves:
        last = leaf
        if kind % 3 == 1 and len(b.values[leaf]) > 1:
            flat = math.prod(b.values[leaf])
            b.add("flatten", (leaf,), lambda x: torch.flatten(x, 1), (flat,))
            last = len(b.values) - 1
        if kind % 3 != 2 or leaf != leaves[-1]:
            _mix(b, Instruction("mix", b.back(last), 0, 4))
            last = len(b.values) - 1
        outputs.append(last)
    return tuple(outputs)


class RandomModel(nn.Module):
    """The model that a program spells; `str` of it lists the steps with shapes."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        builder = Builder([program.input_shape])
        for instruction in program.instructions:
            OPERATIONS[instruction.op](builder, instruction)
        self.outputs = _read_out(builder, program.readout)
        self.steps = builder.steps
        self.input_shape = program.input_shape
        for index, step in enumerate(self.steps):
            if step.layer is not None:
                self.add_module(f"step{index}", step.layer)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = [x]
        for step in self.steps:
            made = step.compute(*(values[k] for k in step.reads))
            values.extend(made if isinstance(made, tuple | list) else (made,))
        return tuple(values[k] for k in self.outputs)

    def __str__(self) -> str:
        lines, first = [f"v0 = input {self.input_shape}"], 1
        for index, step in enumerate(self.steps):
            names = ", ".join(f"v{first + k}" for k in range(len(step.shapes)))
            owner = f"step{index}: " if step.layer is not None else ""
            lines.append(f"{names} = {owner}{step.text}({', '.join(f'v{k}' for k in step.reads)}) {step.shapes}")
            first += len(step.shapes)
        return "\n".join([*lines, f"return {', '.join(f'v{k}' for k in self.outputs)}"])


@st.composite
def programs(draw: st.DrawFn, smallest: int = 2, largest: int = 6) -> Program:
    """Programs of one mix and so many more instructions, then the readout.

    What is common in models is drawn more often: mixes, activations, and what rearranges axes between them.
    """
    often = ("block", "block", "mix", "activate", "binary", "chunk", "concat", "reshape")
    op = st.sampled_from((*often, *OPERATIONS))
    back = st.sampled_from((0, 0, 0, 0, 1, 2))
    instruction = st.builds(Instruction, op, back, st.integers(0, 29), st.integers(0, 5))
    body = draw(st.lists(instruction, min_size=smallest, max_size=largest))
    start = Instruction("mix", 0, draw(st.sampled_from((0, 1, 3))), draw(st.integers(0, 5)))
    return Program(draw(st.integers(0, len(INPUTS) - 1)), (start, *body), draw(st.integers(0, 2)))
