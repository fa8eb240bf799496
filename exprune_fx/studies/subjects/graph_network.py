"""The paper's graph network: graph convolutions with a ReLU right behind their linear layer, mean pool, one output."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune_fx.studies.subjects.molecules import ATOM_SIZES, BOND_SIZES


class FeatureEmbedding(nn.Module):
    """The sum of one embedding for each integer feature."""

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, width) for size in sizes)

    def forward(self, features: Tensor) -> Tensor:
        """int64 [rows, features] to [rows, width]."""
        total = self.tables[0](features[:, 0])
        for place, table in enumerate(self.tables):
            if place:
                total = total + table(features[:, place])
        return cast(Tensor, total)


class GraphConvolution(nn.Module):
    """``h = relu(W x)``; then the normalised sum of ``h + bond`` over neighbours, and ``(h + root) / degree``.

    Kipf and Welling's convolution (arXiv 1609.02907) as OGB's baseline has it, with the ReLU moved to where the paper's
    reference implementation has it: on the linear layer itself, so that a pre-activation is a sum of one node's terms.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.root = nn.Parameter(torch.randn(width))
        self.bonds = FeatureEmbedding(BOND_SIZES, width)

    def forward(
        self, x: Tensor, source: Tensor, target: Tensor, bonds: Tensor, norm: Tensor, inverse_degree: Tensor
    ) -> Tensor:
        """[nodes, width] to [nodes, width]."""
        hidden = F.relu(self.linear(x))
        messages = norm.unsqueeze(1) * (hidden.index_select(0, source) + self.bonds(bonds))
        own = (hidden + self.root) * inverse_degree.unsqueeze(1)
        return own.index_add(0, target, messages)


class GraphNetwork(nn.Module):
    """Embedded atoms, graph convolutions with batch norm and ReLU (not the last), mean over each graph, one logit."""

    def __init__(self, width: int = 300, layers: int = 5, dropout: float = 0.5) -> None:
        super().__init__()
        self.atoms = FeatureEmbedding(ATOM_SIZES, width)
        self.convolutions = nn.ModuleList(GraphConvolution(width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, 1, bias=False)

    def forward(
        self,
        atoms: Tensor,
        source: Tensor,
        target: Tensor,
        bonds: Tensor,
        norm: Tensor,
        inverse_degree: Tensor,
        graph: Tensor,
        sizes: Tensor,
    ) -> Tensor:
        """Logits, [graphs, 1].

        Args:
            atoms: int64, [nodes, 9].
            source: int64, [edges], nodes.
            target: int64, [edges], nodes.
            bonds: int64, [edges, 3].
            norm: [edges], ``1 / sqrt(degree of source * degree of target)``.
            inverse_degree: [nodes]; degrees count the node itself.
            graph: int64, [nodes]: whose node.
            sizes: float, [graphs]: nodes of each.
        """
        x = self.atoms(atoms)
        last = len(self.norms) - 1
        for place, (convolution, normed) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = normed(convolution(x, source, target, bonds, norm, inverse_degree))
            x = self.dropout(x if place == last else F.relu(x))
        pooled = x.new_zeros(sizes.shape[0], x.shape[1]).index_add(0, graph, x) / sizes.unsqueeze(1)
        return cast(Tensor, self.output(pooled))
