"""The plan: all that passes between deciding and rewriting. Frozen plain data, saved as JSON."""

from exprune_fx.plan.array import Array as Array
from exprune_fx.plan.head import HeadPlan as HeadPlan
from exprune_fx.plan.plan import Objective as Objective
from exprune_fx.plan.plan import Plan as Plan
from exprune_fx.plan.site import Head as Head
from exprune_fx.plan.site import SitePlan as SitePlan
from exprune_fx.plan.timing import SiteTiming as SiteTiming
