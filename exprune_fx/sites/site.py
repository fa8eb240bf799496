"""What a site is: frozen data that names graph nodes and holds none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

SiteKind = Literal["linear", "conv1d", "conv2d", "conv3d"]
Activation = Literal["relu", "relu6", "relu_squared"]


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution's kernel walks: one number per spatial dimension, in the units of `torch.nn.functional`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class GatedProjection:
    """The other branch of ``activation(a) * b``: a linear layer, its rows needed only where the gate is not zero."""

    node: str
    product_node: str


@dataclass(frozen=True)
class PoolWindow:
    """The windows of a max pool that alone reads a site's activation; each pixel stands in one of them at most.

    Of a window only the largest value is passed on: a neuron that others there exceed is as good as zero. A pixel that
    stands in no window, in the rows or columns that the pool's size leaves over, is never read.
    """

    node: str
    kernel: tuple[int, ...]


@dataclass(frozen=True)
class Site:
    """A reduction, the activation it meets, and what is known of both.

    Attributes:
        name: module path of the reduction, made unique ("features.3", "blocks.0.fc1", "fc#2").
        node: name of the reduction's node.
        activation_node: name of the node whose value the staged form replaces.
        kind: linear or convolution.
        activation: what the pre-activation meets.
        weight: the weight's parameter name.
        weight_shape: [out, K, *kernel] (convolution, K per group) or [out, K*block] (linear).
        terms: K, the number of summands of one pre-activation.
        block: input features in one term (H*W after a flatten of channels, else 1).
        geometry: the convolution's, None for linear.
        chain: names of the nodes from after the reduction to before the activation.
        residual: name of the node whose value is added before the activation, or None.
        input_nonnegative: the reduction's input is proved to be >= 0 everywhere.
        gated: the branch that this site's output gates, or None.
        pool: the windows in which this site's neurons are rivals, or None.
        exchangeable: the terms are exchangeable.
        reason: why, or why not, in words.
        input_group: name of the symmetry group that the terms run over, or None.
        output_group: name of the symmetry group of the site's neurons, or None.
        obstacle: why this site cannot be staged as it stands ("" if it can).
    """

    name: str
    node: str
    activation_node: str
    kind: SiteKind
    activation: Activation
    weight: str
    weight_shape: tuple[int, ...]
    terms: int
    block: int
    geometry: ConvGeometry | None
    chain: tuple[str, ...]
    residual: str | None
    input_nonnegative: bool
    gated: GatedProjection | None
    exchangeable: bool
    reason: str
    input_group: str | None
    output_group: str | None
    obstacle: str = ""
    pool: PoolWindow | None = None

    @property
    def out_features(self) -> int:
        """Neurons of one pixel or row."""
        return self.weight_shape[0]

    @property
    def elements(self) -> int:
        """Multiply-adds of one pre-activation: K * block, or K * kernel size."""
        return math.prod(self.weight_shape[1:])

    @property
    def elements_per_term(self) -> int:
        """Multiply-adds of one term."""
        return self.elements // self.terms

    @property
    def spatial_dims(self) -> int:
        """0 for linear, 1 to 3 for a convolution."""
        return len(self.weight_shape) - 2 if self.geometry is not None else 0
