"""Static pruning: criteria, channel plans, and shrinking a module or a graph for good."""

from exprune_fx.static.criteria import BatchNormScale as BatchNormScale
from exprune_fx.static.criteria import Criterion as Criterion
from exprune_fx.static.criteria import Expressiveness as Expressiveness
from exprune_fx.static.criteria import Hybrid as Hybrid
from exprune_fx.static.criteria import Magnitude as Magnitude
from exprune_fx.static.criteria import Random as Random
from exprune_fx.static.criteria import Scene as Scene
from exprune_fx.static.criteria import Taylor as Taylor
from exprune_fx.static.criteria.expressiveness import Counts as Counts
from exprune_fx.static.criteria.expressiveness import Noise as Noise
from exprune_fx.static.loop import Shrunk as Shrunk
from exprune_fx.static.plan import ChannelPlan as ChannelPlan
from exprune_fx.static.report import GroupReport as GroupReport
from exprune_fx.static.report import ShrinkReport as ShrinkReport
from exprune_fx.static.shrink import shrink as shrink
