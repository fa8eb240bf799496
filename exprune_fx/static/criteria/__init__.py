"""Which members of a group matter least: criteria, each a small class with one method."""

from exprune_fx.static.criteria.base import Criterion, Scene
from exprune_fx.static.criteria.expressiveness import Expressiveness
from exprune_fx.static.criteria.hybrid import Hybrid
from exprune_fx.static.criteria.simple import Random
from exprune_fx.static.criteria.taylor import Taylor
from exprune_fx.static.criteria.weights import BatchNormScale, Magnitude

__all__ = [
    "BatchNormScale", "Criterion", "Expressiveness", "Hybrid", "Magnitude", "Random", "Scene", "Taylor",
]  # fmt: skip
