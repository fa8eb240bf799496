"""The energy of a site's neurons: what their activations are worth to whatever reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from exprune_fx.sites import Site

aten = torch.ops.aten
_POOLS: dict[object, Callable[..., Any]] = {
    aten.max_pool1d.default: F.max_pool1d,
    aten.max_pool2d.default: F.max_pool2d,
    aten.max_pool3d.default: F.max_pool3d,
}


@dataclass(frozen=True)
class Pool:
    """A max-pool that alone reads a site's activation: whoever does not win a window there is as good as dead.

    Attributes:
        function: of `torch.nn.functional`.
        arguments: kernel, stride, padding, dilation and ceil mode, as far as they are given.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def winners(self, activation: Tensor) -> Tensor:
        """Bool, where an element is the one maximum that some window passes on: [N, C, *space]."""
        _, indices = self.function(activation, *self.arguments, return_indices=True)
        won = torch.zeros_like(activation, dtype=torch.bool).flatten(2)
        return won.scatter_(2, indices.flatten(2), torch.ones_like(indices.flatten(2), dtype=torch.bool)).view_as(
            activation
        )


def pool_after(activation: fx.Node) -> Pool | None:
    """The max-pool that is the only reader of a node, or None."""
    users = list(activation.users)
    if len(users) != 1 or users[0].target not in _POOLS or users[0].kwargs:
        return None
    kernel, *more = users[0].args[1:]
    if more and not more[0]:
        more[0] = kernel  # an empty stride stands for the kernel's size
    return Pool(_POOLS[users[0].target], (kernel, *more))


def activate(site: Site, z: Tensor) -> Tensor:
    """The site's activation of its dense pre-activation."""
    if site.activation == "relu":
        return z.relu()
    return z.clamp(0, 6) if site.activation == "relu6" else z.relu().square()


def energy(site: Site, z: Tensor, pool: Pool | None) -> Tensor:
    """``activation(z)^2``, in float64 and in the shape of z; zero where a max-pool passes nothing of it on."""
    active = activate(site, z)
    squares = active.double().square()
    return squares if pool is None else squares.masked_fill(~pool.winners(active), 0.0)


def by_neuron(site: Site, values: Tensor) -> Tensor:
    """[..., out] or [N, out, *space] -> [out, samples]."""
    return values.reshape(-1, values.shape[-1]).t() if site.geometry is None else values.transpose(0, 1).flatten(1)
