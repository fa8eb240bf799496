"""Models for the tests of capture, verification, edits and printing."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class ResidualBlock(nn.Module):
    conv1: nn.Conv2d
    norm1: nn.BatchNorm2d

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        result: Tensor = self.relu(y)
        return result


class ResidualCnn(nn.Module):
    block: ResidualBlock
    head: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = ResidualBlock(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.drop(self.block(self.stem(x)).mean((2, 3))))
        return result


def randomise(model: M, seed: int = 0) -> M:
    """Takes default values away: they hide errors (identity statistics, zero biases, constant scales)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
            tensor.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return model


class Pair(NamedTuple):
    """Part of an output."""

    first: Tensor
    second: int


class Nested(nn.Module):
    """Containers in and out, a tied weight, buffers, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.register_buffer("scale", torch.full((4,), 3.0))
        self.register_buffer("hidden", torch.full((4,), 2.0), persistent=False)
        self.constant = torch.arange(4.0)

    def forward(
        self,
        items: list[Tensor],
        *,
        extra: dict[str, Tensor],
        power: int = 1,
        flag: bool | None = None,  # noqa: ARG002 - an unused input
    ) -> Any:
        x = self.a(items[0]) * self.scale + self.b(items[1]) * self.hidden
        x = x + extra["z"] * power + self.constant + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {
            "out": x,
            "n": 3,
            "none": None,
            "text": "hi",
            "size": x.shape[0],
            "pair": Pair(x + 1, 7),
            "all": [x, (x,)],
        }


class Guarded(nn.Module):
    """Another graph for even sizes than for odd ones."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[0] % 2 == 0:
            return x + y
        return x - y


def state_of(model: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    """Of every tensor: which one it is, how often it was written to, and its values."""
    both = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: (id(t), t._version, t.detach().clone()) for name, t in both}


def assert_same_state(model: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, (identity, version, value) in before.items():
        assert after[name][:2] == (identity, version), name
        assert torch.equal(after[name][2], value), name
