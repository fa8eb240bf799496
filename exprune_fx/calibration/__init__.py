"""Calibration: decides on data how each site is staged."""

from exprune_fx.calibration.heads import calibrate_heads as calibrate_heads
from exprune_fx.calibration.search import calibrate as calibrate
