"""Small models for the backend's tests, and what their outputs should be."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from exprune_fx.calibration import calibrate
from exprune_fx.guards import Calibrated, Guard
from exprune_fx.plan import Plan
from tests.captures import captured_alike

BATCH = torch.export.Dim("batch")


class SmallCnn(nn.Module):
    """conv-BN-ReLU, a residual block, max-pool, linear-ReLU-linear; 3 x 8 x 8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc1 = nn.Linear(16 * 16, 24)
        self.fc2 = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = self.relu(self.bn2(self.conv2(self.relu(self.conv1(x)))) + x)
        x = self.drop(nn.functional.max_pool2d(x, 2).flatten(1))
        out: Tensor = self.fc2(self.relu(self.fc1(x)))
        return out


class Block(nn.Module):
    """x + fc2(relu(fc1(norm(x))))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(self.fc1(self.norm(x)).relu())
        return out


class Blocks(nn.Module):
    """An embedding of features, blocks, a head; [batch, tokens, 12]."""

    def __init__(self, count: int = 2, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.layers = nn.ModuleList(Block(width, hidden) for _ in range(count))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def randomised(model: nn.Module, seed: int = 0) -> Any:
    """Eval mode; every parameter and statistic random, with biases that make most pre-activations negative."""
    generator = torch.Generator().manual_seed(seed)
    model = model.eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise * 0.3)
    return model


def compiled_by(model: Any, options: dict[str, Any], **given: Any) -> Any:
    """The model through the backend; torch's stubs know only strings, numbers and callables as options."""
    return torch.compile(model, backend="exprune", options=options, **given)


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(count, length, 12, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, x: Tensor) -> fx.GraphModule:
    """With a symbolic batch; it holds the model's own tensors, and so has its values at any later time."""
    return captured_alike(model, x, ({0: BATCH},))


def plan_of(model: nn.Module, x: Tensor, guard: Guard = Calibrated(0.05), head: Any = "auto") -> Plan:  # noqa: B008 - frozen
    return calibrate(captured(model, x), [(x,)], guard=guard, head=head)
