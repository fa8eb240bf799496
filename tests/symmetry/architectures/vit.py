"""Vision transformer as timm writes it: fused qkv, scaled dot product attention, class token, layer scale."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import (
    Architecture,
    Expected,
    at,
    batched,
    free,
    image,
    into,
    out_b,
    pinned,
    randomise,
)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        y: torch.Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))
        return y


class EncoderBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.gamma2 = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        y: torch.Tensor = x + self.gamma2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return y


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 15, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 15))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 15))
        self.blocks = nn.Sequential(EncoderBlock(15, 3, 7), EncoderBlock(15, 3, 8))
        self.norm = nn.LayerNorm(15)
        self.head = nn.Linear(15, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        x = self.norm(self.blocks(x))
        y: torch.Tensor = self.head(x[:, 0])
        return y


def _attention(block: str) -> tuple[Expected, ...]:
    """Heads move as wholes; within each, queries move with keys, and values with the projection's columns."""
    qkv = f"{block}.attn.qkv"
    return (
        free(3, out_b(qkv), into(f"{block}.attn.proj")),
        free(5, out_b(qkv), repeats=3),
        free(5, out_b(qkv), into(f"{block}.attn.proj"), repeats=3),
    )


def vit(generator: torch.Generator) -> Architecture:
    """Positions are told apart: they are the image's patches, and the head reads position 0."""
    x = image(generator)
    blocks = ("blocks.0", "blocks.1")
    return Architecture(
        randomise(ViT(), generator),
        (x,),
        batched(x),
        (
            free(
                15,
                out_b("patch"),
                at("cls_token", 2),
                at("pos_embed", 2),
                *(into(f"{b}.attn.qkv", f"{b}.fc1") for b in blocks),
                *(out_b(f"{b}.norm1", f"{b}.attn.proj", f"{b}.norm2", f"{b}.fc2") for b in blocks),
                *([(f"{b}.gamma1", 0), (f"{b}.gamma2", 0)] for b in blocks),
                out_b("norm"),
                into("head"),
            ),
            *_attention("blocks.0"),
            *_attention("blocks.1"),
            free(7, out_b("blocks.0.fc1"), into("blocks.0.fc2")),
            free(8, out_b("blocks.1.fc1"), into("blocks.1.fc2")),
            pinned(3, "patch.weight", 1),
            pinned(10, "head.weight", 0),
        ),
    )
