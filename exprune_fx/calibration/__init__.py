"""Calibration: decides on data how each site is staged."""

from exprune_fx.calibration.search import calibrate as calibrate
