"""Experiments of static pruning, one a file: each a function that returns frozen data, and one that makes its table."""
