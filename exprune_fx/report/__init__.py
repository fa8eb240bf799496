"""What was found in a graph, what was staged, what was left dense and why: as text, tables and a page."""

from exprune_fx.report.explanation import Explanation as Explanation
from exprune_fx.report.explanation import explain as explain
