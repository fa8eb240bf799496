"""ViT-B/16 (Dosovitskiy et al., arXiv 2010.11929), sizes taken from tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, HEADS, DEPTH, PATCH, IMAGE = 768, 12, 12, 16, 224


class Attention(nn.Module):
    """Self-attention with a projection each for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """N x tokens x dim to the same."""
        count, tokens, _ = x.shape
        query, key, value = (
            each(x).reshape(count, tokens, self.heads, -1).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(count, tokens, -1))
        return y


class Layer(nn.Module):
    """Norm and attention, norm and two linear layers with GELU, each added to its input."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim, 1e-6), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, 1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """N x tokens x dim to the same."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class ViT(nn.Module):
    """Patches, a class token, positions, layers, and a linear layer on the class token."""

    def __init__(self, dim: int = DIM, heads: int = HEADS, depth: int = DEPTH, image: int = IMAGE) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, (image // PATCH) ** 2 + 1, dim) * 0.02)
        self.layers = nn.Sequential(*(Layer(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, 1e-6), nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x image x image to N x 1000."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        y: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return y


def vit_b16() -> ViT:
    """86.57 million parameters."""
    return ViT()
