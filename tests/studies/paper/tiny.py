"""A subject that a run is through with in seconds."""

from __future__ import annotations

import torch
from torch import nn
from torch.export import Dim

from exprune_fx.studies.subjects import Accuracy, Judge, Subject


def tiny_network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 16),
            nn.ReLU(),
            nn.Linear(16, 4),
        )
        with torch.no_grad():  # outputs that differ by input
            model.get_parameter("9.weight").mul_(20)
            model.get_parameter("9.bias").zero_()
    return model.eval()


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def judge(model: nn.Module, seed: int, count: int = 48) -> Judge:
    """Right is what the dense model says, but for one example in eight."""
    inputs = images(count, seed)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels[::8] = (labels[::8] + 1) % 4
    return Judge(Accuracy(), [(part,) for part in inputs.split(12)], labels.split(12))


def tiny_subject(sparse: bool = False) -> Subject:
    model = tiny_network()
    if sparse:
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight[torch.rand(module.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    return Subject(
        name="tiny",
        title="a tiny network",
        about="no data to speak of",
        model=model,
        args=(images(2, 0),),
        dynamic_shapes=({0: Dim.AUTO},),
        calibration=[(images(16, 1),), (images(16, 2),)],
        selection=judge(model, 3),
        test=judge(model, 4),
        head_terms=2,
        sparse=sparse,
    )
