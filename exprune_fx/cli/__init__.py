"""The command line: ``exprune``."""

from exprune_fx.cli.app import main as main
