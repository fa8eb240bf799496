"""A tiny classifier with made images: bright or dark in one of two halves."""

from __future__ import annotations

import torch
from torch import nn

from exprune_fx.studies.static.classifiers import Classifier, Labelled


def tiny() -> nn.Sequential:
    """Two convolutions with batch norms; 4 classes, 3 x 8 x 8 images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)).eval()


def made(count: int, seed: int) -> Labelled:
    """Noise whose mean tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    return Labelled(torch.randn(count, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1), labels)


def subject() -> Classifier:
    """All sets apart."""
    sets = [made(count, seed) for seed, count in enumerate((16, 64, 20, 24))]
    scoring, tuning, selection, test = sets
    return Classifier("tiny", tiny, tiny, scoring, tuning, selection, test, test[:8])
