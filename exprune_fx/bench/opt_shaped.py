"""A decoder in the shape of OPT, one token at a time: the row that stands for language models at small batch.

Pre-LayerNorm, ReLU, attention over a key-value cache of 256 positions that comes in as two tensors. The weights are
random, from a seed: a clock does not care. What it does care about is set near what was measured on real OPT models:
the biases of fc1 leave 90 % of the hidden units zero over the calibration tokens, and 70 % of the neurons stop after an
eighth of their terms. That removes 61 % of fc1's FLOPs, as many as Calibrated(0.005) removed on a small trained OPT at
a loss within the noise. The gain of the LayerNorm in front makes that eighth hold most of the variance, as an order by
variance does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exprune_fx.bench.micro import leading_scale
from exprune_fx.bench.quantiles import quantile_plan, shift_biases
from exprune_fx.bench.subject import Args, Say, Subject
from exprune_fx.graph import capture

NAME = "opt_shaped"
SEED = 0
LAYERS, HIDDEN, HEADS, CACHE = 4, 2048, 32, 256
ZERO, STOPPED = 0.9, 0.7
CALIBRATION_TOKENS, TURNS = 64, 4


class Attention(nn.Module):
    """Self-attention of one new position a row over a cache and itself."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(hidden, hidden) for _ in range(4))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step.

        The softmax runs over the scores of the cache and of the new position, set side by side: the cache itself is
        read once and never copied, as a server that writes into its cache would have it.

        Args:
            x: [batch, 1, hidden].
            keys: [batch, heads, cache, head_dim].
            values: likewise.

        Returns:
            [batch, 1, hidden], and the new position's key and value, [batch, heads, 1, head_dim].
        """
        query, key, value = (self._split(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        query = query * query.shape[-1] ** -0.5
        scores = torch.cat([query @ keys.transpose(2, 3), query @ key.transpose(2, 3)], dim=-1)
        weights = scores.softmax(-1)
        seen = keys.shape[2]
        mixed = weights[..., :seen] @ values + weights[..., seen:] * value
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out, key, value

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class Layer(nn.Module):
    """Attention and a feed-forward block, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(hidden)
        self.self_attn = Attention(hidden, heads)
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.fc1 = nn.Linear(hidden, 4 * hidden)
        self.fc2 = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Attention.forward`."""
        mixed, key, value = self.self_attn(self.self_attn_layer_norm(x), keys, values)
        x = x + mixed
        return x + self.fc2(F.relu(self.fc1(self.final_layer_norm(x)))), key, value


class OptShaped(nn.Module):
    """Decoder layers and a final LayerNorm; no embedding and no vocabulary head."""

    def __init__(self, layers: int = LAYERS, hidden: int = HIDDEN, heads: int = HEADS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """One token a row.

        Args:
            x: [batch, 1, hidden].
            keys: [layers, batch, heads, cache, head_dim].
            values: likewise.

        Returns:
            [batch, 1, hidden]; each layer's new keys and new values, [batch, heads, 1, head_dim].
        """
        new_keys, new_values = [], []
        for index, layer in enumerate(self.layers):
            x, key, value = layer(x, keys[index], values[index])
            new_keys.append(key)
            new_values.append(value)
        return self.final_layer_norm(x), new_keys, new_values


def make_opt_shaped(
    dtype: torch.dtype, batch: int, say: Say, *, layers: int = LAYERS, hidden: int = HIDDEN, heads: int = HEADS
) -> Subject:
    """The decoder, staged by quantiles over seeded tokens; it is timed on other tokens of the same distribution.

    Args:
        dtype: of weights and activations.
        batch: rows a call, one token each.
        say: told what is being done.
        layers: decoder layers.
        hidden: features.
        heads: of the attention.
    """
    say("weights and biases")
    torch.manual_seed(SEED)
    model = OptShaped(layers, hidden, heads).eval()
    decoder = [layer for layer in model.layers if isinstance(layer, Layer)]
    for layer in decoder:
        layer.final_layer_norm.weight.data = leading_scale(hidden)
    cache = [torch.randn(layers, batch, heads, CACHE, hidden // heads) for _ in range(2)]
    calls = max(CALIBRATION_TOKENS // batch, 2)
    tokens = torch.randn(calls + TURNS, batch, 1, hidden)
    batches: list[Args] = [(token, *cache) for token in tokens]
    for layer in decoder:  # one after the other: each sees what the shifted ones before it leave
        shift_biases(model, [layer.fc1], batches[:calls], ZERO)
    model = model.to(dtype)
    batches = [tuple(value.to(dtype) for value in args) for args in batches]
    say("thresholds")
    gm = capture(model, batches[0])
    plan = quantile_plan(gm, batches[:calls], STOPPED)
    about = f"random weights; {STOPPED:.0%} of the neurons stop after 1/8 of their terms, {ZERO:.0%} of fc1's are zero"
    return Subject(NAME, "model", dtype, batch, model, gm, plan, tuple(batches[calls:]), about)
