"""Capture a model as one FX graph in the dialect; verify, edit and print such graphs."""

from exprune_fx.graph.capture import capture as capture
