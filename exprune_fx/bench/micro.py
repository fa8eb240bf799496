"""Micro rows: one feed-forward block, or one convolution, with a known share of its neurons stopped.

How their weights and inputs are made, all from one seed:

- Weights and biases as torch initialises them.
- Inputs are ``relu(normal noise)``, so that half of them are zero, as behind a ReLU; the first eighth of the features
  (channels) is then scaled so that it holds 80 % of the variance: calibration orders terms by falling variance, and a
  prefix that knew nothing would stop neurons that matter.
- Each neuron's bias is shifted to minus the wanted quantile of its pre-activation over sample inputs (512 tokens; all
  pixels of 8 images), so that the wanted share of activations is zero.
- Each neuron's threshold is the wanted quantile of its own sums ``S + c`` over the same samples (`quantile_plan`).

A row is timed on the first samples, in turn. As quantiles are over many samples, one token's share differs a little
from the wanted one: rows report what was really stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.bench.quantiles import quantile_plan, shift_biases
from exprune_fx.bench.subject import RowSpec, Say, Subject
from exprune_fx.graph import capture
from exprune_fx.guards import HeadKind

SEED = 0
SEEN = 1 / 8
LEADING_VARIANCE = 0.8
TOKENS, IMAGES, TURNS = 512, 8, 8

FFN_HIDDEN = (768, 2048, 4096)
FFN_BATCHES = (1, 4, 16, 64)  # of hidden size 2048; the others take one token
FFN_DTYPES = (torch.float32, torch.bfloat16)
CONVOLUTIONS = ((64, 32), (128, 16), (256, 8), (512, 4))  # channels in and out, height and width
CONV_ALIVE = 0.35
CONV_ZERO = 0.7


@dataclass(frozen=True)
class FfnCase:
    """How much of a feed-forward block is needed.

    Attributes:
        suffix: of the row's name.
        stopped: share of neurons that stop after an eighth of their terms.
        zero: share of hidden units that are zero.
    """

    suffix: str
    stopped: float
    zero: float


SPARSE, FULL = FfnCase("", 0.5, 0.9), FfnCase("_full", 0.0, 0.0)


class FeedForward(nn.Module):
    """Linear, ReLU, linear: [..., hidden] -> [..., hidden], four times as wide inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        out: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return out


class ConvRelu(nn.Module):
    """One 3x3 convolution, as many channels out as in, and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> N x C x H x W."""
        return torch.relu(self.conv(x))


def micro_specs(dtypes: Sequence[torch.dtype] | None = None, batch: int | None = None) -> Iterator[RowSpec]:
    """All micro rows.

    Args:
        dtypes: of every row; by default feed-forward blocks in float32 and bfloat16, convolutions in float32.
        batch: tokens or images a call; by default 1, and 1, 4, 16 and 64 tokens for hidden size 2048.
    """
    for dtype in dtypes or FFN_DTYPES:
        for hidden in FFN_HIDDEN:
            for rows in (batch,) if batch else FFN_BATCHES if hidden == 2048 else (1,):
                for case in (SPARSE, FULL):
                    name = f"ffn_{hidden}{case.suffix}"
                    make = partial(make_ffn, hidden, case, dtype, rows)
                    yield RowSpec(name, "micro", dtype, rows, make)
    heads: tuple[HeadKind, ...] = ("prefix", "principal", "coded")
    for dtype in dtypes or (torch.float32,):
        for channels, side in CONVOLUTIONS:
            for head in heads:
                name = f"conv_{channels}x{side}x{side}_{head}"
                make = partial(make_conv, channels, side, head, dtype, batch or 1)
                yield RowSpec(name, "micro", dtype, batch or 1, make)


def leading_scale(features: int, seen: float = SEEN, share: float = LEADING_VARIANCE) -> Tensor:
    """[features]: what the first ``seen`` of equal features are multiplied by to hold this share of the variance."""
    first = max(1, round(seen * features))
    scale = torch.ones(features)
    scale[:first] = (share / (1 - share) * (features - first) / first) ** 0.5
    return scale


def make_ffn(hidden: int, case: FfnCase, dtype: torch.dtype, batch: int, say: Say) -> Subject:
    """A feed-forward block with a known share of stopped neurons and of zero hidden units.

    Args:
        hidden: features in and out.
        case: how much is needed.
        dtype: of weights and inputs; thresholds are those of the weights as rounded to it.
        batch: tokens a call.
        say: told what is being done.
    """
    say("inputs, biases, thresholds")
    torch.manual_seed(SEED)
    model = FeedForward(hidden).eval()
    tokens = torch.randn(max(TOKENS, TURNS * batch), hidden).relu() * leading_scale(hidden)
    shift_biases(model, [model.fc1], [(tokens,)], case.zero)
    model, tokens = model.to(dtype), tokens.to(dtype)
    any_rows = capture(model, (tokens[:2],), dynamic_shapes=({0: Dim.AUTO},))
    plan = quantile_plan(any_rows, [(tokens,)], case.stopped, SEEN)
    gm = capture(model, (tokens[:batch],))  # torch.compile, too, knows the rows of a call
    inputs = tuple((rows.clone(),) for rows in tokens[: TURNS * batch].split(batch))
    about = f"{case.stopped:.0%} of the neurons stop after 1/8 of their terms, {case.zero:.0%} of the units are zero"
    return Subject(f"ffn_{hidden}{case.suffix}", "micro", dtype, batch, model, gm, plan, inputs, about)


def make_conv(channels: int, side: int, head: HeadKind, dtype: torch.dtype, batch: int, say: Say) -> Subject:
    """A convolution of which 35 % of the outputs survive the head.

    Inputs are in channels-last memory for every column, as the layer before would leave them in a compiled network; the
    best dense column is as fast on either layout.

    Args:
        channels: in and out.
        side: height and width.
        head: prefix (an eighth of the channels), principal (of that rank) or coded (all channels in 8 bits).
        dtype: of weights and inputs.
        batch: images a call.
        say: told what is being done.
    """
    say("inputs, biases, thresholds")
    torch.manual_seed(SEED)
    model = ConvRelu(channels).eval()
    images = torch.randn(max(IMAGES, TURNS * batch), channels, side, side).relu()
    images = (images * leading_scale(channels).view(-1, 1, 1)).contiguous(memory_format=torch.channels_last)
    shift_biases(model, [model.conv], [(images[:IMAGES],)], CONV_ZERO)
    model, images = model.to(dtype), images.to(dtype)
    gm = capture(model, (images[:2],), dynamic_shapes=({0: Dim.AUTO},))
    plan = quantile_plan(gm, [(images[:IMAGES],)], 1 - CONV_ALIVE, SEEN, head)
    turns = images[: TURNS * batch].split(batch)
    inputs = tuple((turn.clone(memory_format=torch.channels_last),) for turn in turns)
    sees = "of all channels in 8 bits" if head == "coded" else "of 1/8 of the channels"
    about = f"{CONV_ALIVE:.0%} of the outputs survive a {head} head {sees}"
    name = f"conv_{channels}x{side}x{side}_{head}"
    return Subject(name, "micro", dtype, batch, model, gm, plan, inputs, about)
