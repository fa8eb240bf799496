"""Experiments on real data: what the papers report, made again, and ours beside it."""
