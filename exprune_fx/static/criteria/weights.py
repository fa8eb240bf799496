"""Criteria that look at the weights alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from exprune_fx.static.criteria.base import Scene, Scores, relative

logger = logging.getLogger(__name__)
aten = torch.ops.aten
_NORMS = {
    aten.batch_norm.default: 1, aten.layer_norm.default: 2, aten.group_norm.default: 2, aten.instance_norm.default: 1,
}  # fmt: skip


@dataclass(frozen=True)
class Magnitude:
    """The p-norm of all weights that go with a member, of every layer that its group ties.

    Weights are parameters of two or more dims: biases, shifts and the scales of norms are left out.

    Attributes:
        p: 1 or 2.
    """

    p: Literal[1, 2] = 2

    def scores(self, scene: Scene) -> Scores:
        """p-norms."""
        found = {}
        for group in scene.groups:
            total, _ = scene.over_parameters(group, self._powers)
            found[group.name] = total ** (1 / self.p)
        return found

    def _powers(self, _: str, tensor: Tensor) -> Tensor | None:
        return tensor.to(torch.float64).abs() ** self.p if tensor.dim() > 1 else None


@dataclass(frozen=True)
class BatchNormScale:
    """The mean size of the scales that a member's normalisations multiply it by (Network Slimming, arXiv 1708.06519).

    A group without any norm takes `Magnitude`, relative to its mean as all scores are.
    """

    def scores(self, scene: Scene) -> Scores:
        """Mean sizes of scales."""
        scales = {
            str(weight.target)
            for node in scene.graph.graph.nodes
            if node.target in _NORMS and isinstance(weight := _argument(node, _NORMS[node.target]), fx.Node)
        }
        found = {}
        for group in scene.groups:
            total, count = scene.over_parameters(
                group, lambda name, tensor: tensor.abs() if name in scales and tensor.dim() == 1 else None
            )
            if count:
                found[group.name] = total / count
                continue
            logger.info("%s has no norm: it is ranked by magnitude", group.name)
            total = Magnitude().scores(Scene(scene.graph, scene.report, (group,)))[group.name]
            found[group.name] = relative(total)
        return found


def _argument(node: fx.Node, position: int) -> object:
    return node.args[position] if len(node.args) > position else None
