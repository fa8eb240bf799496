"""Fully connected networks, and a language model whose embedding is tied to its output."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import Architecture, at, batched, free, into, out_b, pinned, randomise


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.fc2 = nn.Linear(7, 6)
        self.fc3 = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc3(F.gelu(self.fc2(F.relu(self.fc1(x)))))
        return y


def mlp(generator: torch.Generator) -> Architecture:
    x = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    return Architecture(
        randomise(MLP(), generator),
        (x,),
        batched(x),
        (
            free(7, out_b("fc1"), into("fc2")),
            free(6, out_b("fc2"), into("fc3")),
            pinned(5, "fc1.weight", 1),
            pinned(4, "fc3.weight", 0),
        ),
    )


class SquaredReLUMLP(nn.Module):
    """Residual squared-ReLU feed-forward with per-feature scales; the residual stream ends in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 9)
        self.up = nn.Linear(9, 7, bias=False)
        self.down = nn.Linear(7, 9, bias=False)
        self.scale = nn.Parameter(torch.ones(9))
        self.last = nn.Linear(9, 9, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.down(F.relu(self.up(x)).square()) * self.scale
        y: torch.Tensor = self.last(F.relu(x)) + x
        return y


def squared_relu_mlp(generator: torch.Generator) -> Architecture:
    """The stream of 9 is added into the output, so it is pinned although every layer treats its features alike."""
    x = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    return Architecture(
        randomise(SquaredReLUMLP(), generator),
        (x,),
        batched(x),
        (
            free(7, at("up.weight", 0), into("down")),
            pinned(9, "embed.weight", 0),
            pinned(9, "scale", 0),
            pinned(9, "last.weight", 1),
        ),
    )


class TiedLM(nn.Module):
    """Bag-of-context language model: the matrix that embeds tokens also scores them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(19, 8)
        self.fc1 = nn.Linear(8, 7)
        self.fc2 = nn.Linear(7, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        x = x + x.mean(1, keepdim=True)
        x = x + self.fc2(F.relu(self.fc1(x)))
        return F.linear(self.norm(x), self.embedding.weight)


def tied_lm(generator: torch.Generator) -> Architecture:
    tokens = torch.randint(0, 19, (2, 6), generator=generator)
    return Architecture(
        randomise(TiedLM(), generator),
        (tokens,),
        batched(tokens),
        (
            free(8, at("embedding.weight", 1), into("fc1"), out_b("fc2", "norm")),
            free(7, out_b("fc1"), into("fc2")),
            pinned(19, "embedding.weight", 0),
        ),
    )
