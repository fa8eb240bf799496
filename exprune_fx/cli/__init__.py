"""The command line: ``exprune demo`` and ``exprune explain``."""

from exprune_fx.cli.app import main as main
