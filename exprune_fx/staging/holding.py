"""What the native kernels can compute with at all, whatever the operator: asked by the passes that lower."""

from __future__ import annotations

from torch import Tensor, fx

from exprune_fx.ops.native.fake_site import DTYPES


def obstacle_in_tensors(weight: fx.Node, *others: object) -> str:
    """Why no kernel computes with these tensors; "" if one does.

    Args:
        weight: of the layer.
        others: what is computed with beside it; what is no node is passed over.
    """
    value: Tensor = weight.meta["val"]
    if value.dtype not in DTYPES:
        return f"its weight is {str(value.dtype).removeprefix('torch.')}, which no kernel computes in"
    nodes = [other for other in others if isinstance(other, fx.Node)]
    for each in (weight, *nodes):
        if (device := each.meta["val"].device).type != "cpu":
            return f"it is on {device}, and the kernels run on the CPU"
    dtypes = {value.dtype, *(node.meta["val"].dtype for node in nodes)}
    if len(dtypes) > 1:
        return f"it mixes {', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in dtypes))}"
    return ""
