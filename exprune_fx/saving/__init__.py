"""`save` and `load`: a staged graph as a file of plain data and tensors, and back on a fresh model.

The file holds the plan, the tensors of the model that was captured, how it was called, and the text of its graph.
`load` captures the fresh model the same way, gives the graph the file's tensors, and transforms it by the plan.
"""

from exprune_fx.saving.reading import load as load
from exprune_fx.saving.writing import save as save
