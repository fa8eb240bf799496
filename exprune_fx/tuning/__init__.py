"""Finds the cheapest plan within a drop of the caller's own metric."""

from exprune_fx.tuning.guard_search import GuardSearch as GuardSearch
from exprune_fx.tuning.guard_search import GuardTrial as GuardTrial
from exprune_fx.tuning.guard_search import search_guards as search_guards
from exprune_fx.tuning.optimize import Optimized as Optimized
from exprune_fx.tuning.optimize import optimize as optimize
from exprune_fx.tuning.plot import plot_front as plot_front
from exprune_fx.tuning.report import OptimizeReport as OptimizeReport
from exprune_fx.tuning.report import Trial as Trial
