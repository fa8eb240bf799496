"""Sites: reductions whose result meets a ReLU-like activation through affine operations only."""

from exprune_fx.sites.find import find_sites as find_sites
from exprune_fx.sites.heads import PredictionHead as PredictionHead
from exprune_fx.sites.heads import find_heads as find_heads
from exprune_fx.sites.site import ConvGeometry as ConvGeometry
from exprune_fx.sites.site import GatedProjection as GatedProjection
from exprune_fx.sites.site import PoolWindow as PoolWindow
from exprune_fx.sites.site import Site as Site
