"""Capture a model as one FX graph in the dialect; verify, edit and print such graphs."""

from exprune_fx.graph.capture import capture as capture
from exprune_fx.graph.edits import copy_graph_module as copy_graph_module
from exprune_fx.graph.edits import tensor_at as tensor_at
from exprune_fx.graph.edits import tensor_names as tensor_names
from exprune_fx.graph.printing import python_text as python_text
from exprune_fx.graph.verify import CHECKS as CHECKS
from exprune_fx.graph.verify import describe_node as describe_node
from exprune_fx.graph.verify import require_graph as require_graph
from exprune_fx.graph.verify import same_layout as same_layout
from exprune_fx.graph.verify import same_size as same_size
from exprune_fx.graph.verify import verify as verify
