"""The masked dense model: what a shrunk one must compute, built without any of the code that shrinks.

Of the plan only the positions that went are read. Then, by the documented meaning of removal and by the types of the
layers: producing rows are zero, scales of batch norms are zero (biases and shifts stay), normalisations over channels
take the channels that are left, and what cannot take a constant into its bias reads zeros.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from exprune_fx.static import ChannelPlan


class MaskedLayerNorm(nn.Module):
    """Layer norm, or RMS norm, over the features that are left; the others give zero."""

    kept: torch.Tensor

    def __init__(self, norm: Any, kept: torch.Tensor, eps: float, centred: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.register_buffer("kept", kept)
        self.eps, self.centred = eps, centred

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = x[..., self.kept]
        if self.centred:
            left = left - left.mean(-1, keepdim=True)
        left = left / (left.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight[self.kept]
        result = torch.zeros_like(x)
        result[..., self.kept] = left if self.bias is None else left + self.bias[self.kept]
        return result


class MaskedGroupNorm(nn.Module):
    """Group norm over the channels that are left; the others give zero. A group may lose all of its channels."""

    kept: torch.Tensor

    def __init__(self, norm: nn.GroupNorm, kept: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.groups = norm.weight, norm.bias, norm.eps, norm.num_groups
        self.register_buffer("kept", kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        each = x.shape[1] // self.groups
        for group in range(self.groups):
            own = [c for c in self.kept.tolist() if group * each <= c < (group + 1) * each]
            if own:
                part = F.group_norm(x[:, own], 1, self.weight[own], self.bias[own], self.eps)
                result[:, own] = part
        return result


def gone(plan: ChannelPlan) -> dict[str, torch.Tensor]:
    """For every tensor that was cut, bool: which of its numbers went."""
    found = {}
    for cut in plan.rounds[0].tensors:
        numbers = torch.arange(math.prod(cut.before)).reshape(cut.before)
        went = torch.ones(numbers.numel(), dtype=torch.bool)
        went[cut(numbers).reshape(-1)] = False
        found[cut.name] = went.reshape(cut.before)
    return found


def whole(went: torch.Tensor, dim: int) -> torch.Tensor:
    """Positions along a dim of which everything went."""
    return went.transpose(0, dim).flatten(1).all(1) if went.dim() > 1 else went


@torch.no_grad()
def masked(model: nn.Module, plan: ChannelPlan, reads_zero: Iterable[str] = ()) -> nn.Module:
    """A copy of the dense model with removed members masked.

    Args:
        model: the dense model.
        plan: of one round.
        reads_zero: layers whose input is no constant map where it was removed, beyond those that pad.
    """
    model = copy.deepcopy(model)
    went = gone(plan)
    module: Any
    for path, module in list(model.named_modules()):
        mask = went.get(f"{path}.weight")
        if mask is None:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.weight[mask] = 0.0
        elif isinstance(module, nn.GroupNorm):
            _replace(model, path, MaskedGroupNorm(module, (~mask).nonzero().flatten()))
        elif isinstance(module, nn.LayerNorm):
            _replace(model, path, MaskedLayerNorm(module, (~mask).nonzero().flatten(), module.eps, centred=True))
        elif type(module).__name__ == "RMSNorm":
            _replace(model, path, MaskedLayerNorm(module, (~mask).nonzero().flatten(), 1e-6, centred=False))
        else:
            _mask_layer(module, mask, path in set(reads_zero))
    return model


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _mask_layer(module: Any, mask: torch.Tensor, reads_zero: bool) -> None:
    """Zero rows; zero columns too, where constants that come in cannot go into the bias."""
    transposed = isinstance(module, nn.ConvTranspose2d)
    embedding = isinstance(module, nn.Embedding)
    out = 1 if transposed or embedding else 0
    rows = whole(mask, out)
    module.weight.transpose(0, out)[rows] = 0.0
    padded = isinstance(module, nn.Conv1d | nn.Conv2d) and any(module.padding)
    if transposed or padded or reads_zero:
        module.weight[mask] = 0.0
