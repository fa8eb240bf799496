"""Small models for the tests of static pruning, and what says that a model is untouched."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Convolutions with batch norms, a residual, and two linear layers."""

    def __init__(self, flat: int | None = None) -> None:
        super().__init__()
        self.flat = flat
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.conv3, self.bn3 = nn.Conv2d(12, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc1, self.fc2 = nn.Linear(8 * 4, 10), nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))))
        x = nn.functional.avg_pool2d(x, 4)
        x = x.view(-1, 8 * 4) if self.flat else x.flatten(1)
        y: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return y


def net(**kwargs: Any) -> Net:
    """A `Net` with weights from a seed and statistics that are not the initial ones."""
    torch.manual_seed(0)
    model = Net(**kwargs)
    for name, tensor in model.state_dict().items():
        if ".running" in name or (name.startswith("bn") and tensor.dim() == 1):
            tensor.copy_(0.5 + torch.rand(tensor.shape))
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, tuple[int, torch.Tensor]]:
    """Every tensor of a model: which object it is, and a copy of its values."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: (id(tensor), tensor.detach().clone()) for name, tensor in named}


def attributes(model: nn.Module) -> dict[str, Any]:
    """Every plain attribute of every submodule."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, int | float | str | tuple | None)
    }


def assert_untouched(model: nn.Module, before: dict[str, tuple[int, torch.Tensor]], plain: dict[str, Any]) -> None:
    """The model holds the same tensors with the same values, bit for bit, and the same attributes."""
    now = snapshot(model)
    assert now.keys() == before.keys()
    assert all(now[name][0] == before[name][0] and torch.equal(now[name][1], before[name][1]) for name in before)
    assert attributes(model) == plain
