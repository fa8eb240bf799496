"""torch_geometric's GCN, GIN and GraphSAGE: nodes are tied to the input, hidden features are free."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import (
    Architecture,
    Expected,
    bn,
    free,
    into,
    out,
    out_b,
    pinned,
    randomise,
)


class TwoConvolutions(nn.Module):
    def __init__(self, conv1: nn.Module, conv2: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv2(F.relu(self.conv1(x, edge_index)), edge_index)
        return y


def _library() -> Any:
    return pytest.importorskip("torch_geometric.nn", exc_type=ImportError)


def _on_a_graph(model: nn.Module, generator: torch.Generator, *expected: Expected) -> Architecture:
    x = torch.randn(6, 5, dtype=torch.float64, generator=generator)
    edge_index = torch.randint(0, 6, (2, 14), generator=generator)
    return Architecture(randomise(model, generator), (x, edge_index), None, expected)


def gcn(generator: torch.Generator) -> Architecture:
    tg = _library()
    return _on_a_graph(
        TwoConvolutions(tg.GCNConv(5, 7), tg.GCNConv(7, 4)),
        generator,
        free(7, out("conv1.lin"), [("conv1.bias", 0)], into("conv2.lin")),
        pinned(5, "conv1.lin.weight", 1),
        pinned(4, "conv2.lin.weight", 0),
    )


def gin(generator: torch.Generator) -> Architecture:
    tg = _library()
    first = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 6))
    second = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    return _on_a_graph(
        TwoConvolutions(tg.GINConv(first, train_eps=True), tg.GINConv(second, eps=0.3)),
        generator,
        free(7, out_b("conv1.nn.0"), bn("conv1.nn.1"), into("conv1.nn.3")),
        free(6, out_b("conv1.nn.3"), into("conv2.nn.0")),
        free(8, out_b("conv2.nn.0"), into("conv2.nn.2")),
        pinned(5, "conv1.nn.0.weight", 1),
        pinned(4, "conv2.nn.2.weight", 0),
    )


def sage(generator: torch.Generator) -> Architecture:
    tg = _library()
    return _on_a_graph(
        TwoConvolutions(tg.SAGEConv(5, 7), tg.SAGEConv(7, 4)),
        generator,
        free(7, out_b("conv1.lin_l"), out("conv1.lin_r"), into("conv2.lin_l", "conv2.lin_r")),
        pinned(5, "conv1.lin_l.weight", 1),
        pinned(4, "conv2.lin_l.weight", 0),
    )
