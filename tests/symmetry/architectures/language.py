"""Decoders: transformers' OPT, and a Llama-style one with grouped-query attention, RoPE and gated feed-forwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import Architecture, Expected, at, free, into, out, out_b, pinned, randomise


def _opt_layer(layer: str, hidden: int) -> tuple[Expected, ...]:
    attn = f"{layer}.self_attn"
    q, k, v, o = (f"{attn}.{p}_proj" for p in ("q", "k", "v", "out"))
    return (
        free(3, out_b(q, k, v), into(o)),
        free(4, out_b(q, k), repeats=3),
        free(4, out_b(v), into(o), repeats=3),
        free(hidden, out_b(f"{layer}.fc1"), into(f"{layer}.fc2")),
    )


def opt(generator: torch.Generator) -> Architecture:
    """The embedding is tied to the output: its rows are pinned, its columns are the residual stream."""
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    config = transformers.OPTConfig(
        vocab_size=23,
        hidden_size=12,
        word_embed_proj_dim=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        ffn_dim=10,
        max_position_embeddings=16,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = randomise(transformers.OPTForCausalLM(config), generator)
    tokens = torch.randint(0, 23, (2, 6), generator=generator)
    layers = [f"model.decoder.layers.{i}" for i in range(2)]
    projections = [f"{x}.self_attn.{p}_proj" for x in layers for p in "qkv"]
    norms = [f"{x}.{n}" for x in layers for n in ("self_attn_layer_norm", "final_layer_norm")]
    return Architecture(
        model,
        (tokens,),
        None,
        (
            free(
                12,
                at("model.decoder.embed_tokens.weight", 1),
                at("model.decoder.embed_positions.weight", 1),
                into(*projections, *(f"{x}.fc1" for x in layers)),
                out_b(*norms, "model.decoder.final_layer_norm"),
                out_b(*(f"{x}.self_attn.out_proj" for x in layers), *(f"{x}.fc2" for x in layers)),
            ),
            *_opt_layer(layers[0], 10),
            *_opt_layer(layers[1], 10),
            pinned(23, "model.decoder.embed_tokens.weight", 0),
            pinned(18, "model.decoder.embed_positions.weight", 0),
        ),
        # q . (k + b) adds the same number to all scores of a query, which the softmax ignores.
        frozenset(f"{x}.self_attn.k_proj.bias" for x in layers),
    )


KV, REPS, HEAD_DIM = 2, 3, 8


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


class GroupedQueryAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, KV * REPS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(dim, KV * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(dim, KV * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(KV * REPS * HEAD_DIM, dim, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q = self.q_proj(x).view(batch, tokens, KV * REPS, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, KV, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, KV, HEAD_DIM).transpose(1, 2)
        q = q * cos + rotate_half(q) * sin
        k = k * cos + rotate_half(k) * sin
        k, v = (
            t[:, :, None].expand(batch, KV, REPS, tokens, HEAD_DIM).reshape(batch, KV * REPS, tokens, HEAD_DIM)
            for t in (k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: torch.Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))
        return z


class LlamaLayer(nn.Module):
    def __init__(self, dim: int, hidden: int, relu: bool) -> None:
        super().__init__()
        self.input_norm = RMSNorm(dim)
        self.self_attn = GroupedQueryAttention(dim)
        self.post_norm = RMSNorm(dim)
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.activation = F.relu if relu else F.silu

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_norm(x), cos, sin)
        y = self.post_norm(x)
        z: torch.Tensor = x + self.down_proj(self.activation(self.gate_proj(y)) * self.up_proj(y))
        return z


class Llama(nn.Module):
    inv_freq: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(17, 13)
        self.layers = nn.ModuleList((LlamaLayer(13, 7, relu=False), LlamaLayer(13, 9, relu=True)))
        self.norm = RMSNorm(13)
        self.lm_head = nn.Linear(13, 17, bias=False)
        inv_freq = 100.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(tokens)
        position = torch.arange(tokens.shape[1], device=tokens.device, dtype=x.dtype)
        angle = position[:, None] * self.inv_freq[None, :]
        angle = torch.cat((angle, angle), -1)
        cos, sin = angle.cos()[None, None], angle.sin()[None, None]
        for layer in self.layers:
            x = layer(x, cos, sin)
        y: torch.Tensor = self.lm_head(self.norm(x))
        return y


def _llama_layer(layer: str, hidden: int) -> tuple[Expected, ...]:
    """A key-value head moves with its query heads; those move among themselves; values move under all of them."""
    q, k, v, o = (f"{layer}.self_attn.{p}_proj" for p in "qkvo")
    return (
        free(KV, out(q, k, v), into(o)),
        free(REPS, out(q), into(o), repeats=KV),
        free(HEAD_DIM, out(v), into(o), repeats=KV),
        free(hidden, out(f"{layer}.gate_proj", f"{layer}.up_proj"), into(f"{layer}.down_proj")),
    )


def llama(generator: torch.Generator) -> Architecture:
    """Dimension i of a rotated head turns with i + 4 at a frequency of its own.

    So the 4 pairs could move only together with the frequencies themselves, alike in all heads and layers. That
    leaves the function unchanged too, but the frequencies are no parameters: an analysis may leave them alone.
    """
    tokens = torch.randint(0, 17, (2, 6), generator=generator)
    layers = ("layers.0", "layers.1")
    return Architecture(
        randomise(Llama(), generator),
        (tokens,),
        ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},),
        (
            free(
                13,
                at("embed_tokens.weight", 1),
                *(out(f"{x}.input_norm", f"{x}.post_norm", f"{x}.self_attn.o_proj", f"{x}.down_proj") for x in layers),
                *(into(*(f"{x}.self_attn.{p}_proj" for p in "qkv")) for x in layers),
                *(into(f"{x}.gate_proj", f"{x}.up_proj") for x in layers),
                out("norm"),
                into("lm_head"),
            ),
            *_llama_layer("layers.0", 7),
            *_llama_layer("layers.1", 9),
            free(
                HEAD_DIM // 2,
                at("inv_freq", 0),
                *(out(f"{x}.self_attn.q_proj", f"{x}.self_attn.k_proj") for x in layers),
                may_be_pinned="only together with RoPE's frequencies, which are constants",
            ),
            pinned(17, "embed_tokens.weight", 0),
            pinned(17, "lm_head.weight", 0),
        ),
    )
