"""Sites whose neurons are rivals in the windows of a max pool, and beside them what must not be taken for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from exprune_fx.graph import capture
from exprune_fx.pipeline import normalise
from exprune_fx.sites import PoolWindow, find_sites

After = Callable[[Tensor], Any]

POOLED: dict[str, tuple[After, tuple[int, int]]] = {
    "square": (lambda z: F.max_pool2d(z.relu(), 2), (2, 2)),
    "oblong": (lambda z: F.max_pool2d(z.relu(), (2, 3)), (2, 3)),
    "stride given": (lambda z: F.max_pool2d(z.relu(), (3, 2), stride=(3, 2)), (3, 2)),
    "pixels left over": (lambda z: F.max_pool2d(z.relu(), 4), (4, 4)),
    "one row": (lambda z: F.max_pool2d(z.relu(), (1, 2)), (1, 2)),
    "relu6": (lambda z: F.max_pool2d(F.relu6(z), 2), (2, 2)),
    "squared": (lambda z: F.max_pool2d(z.relu() ** 2, 2), (2, 2)),
    "relu behind the pool": (lambda z: F.max_pool2d(z, 2).relu(), (2, 2)),
}
MISSES: dict[str, After] = {
    "no pool": lambda z: z.relu(),
    "overlapping windows": lambda z: F.max_pool2d(z.relu(), 3, stride=2),
    "overlapping in one direction": lambda z: F.max_pool2d(z.relu(), 2, stride=(2, 1)),
    "windows that lie apart": lambda z: F.max_pool2d(z.relu(), 2, stride=3),
    "padding": lambda z: F.max_pool2d(z.relu(), 2, padding=1),
    "padding in one direction": lambda z: F.max_pool2d(z.relu(), 2, padding=(0, 1)),
    "dilation": lambda z: F.max_pool2d(z.relu(), 2, stride=2, dilation=2),
    "ceil mode": lambda z: F.max_pool2d(z.relu(), 2, ceil_mode=True),
    "windows of one pixel": lambda z: F.max_pool2d(z.relu(), 1),
    "average": lambda z: F.avg_pool2d(z.relu(), 2),
    "adaptive": lambda z: F.adaptive_max_pool2d(z.relu(), 2),
    "indices": lambda z: F.max_pool2d(z.relu(), 2, return_indices=True),
    "values of a pool with indices": lambda z: F.max_pool2d(z.relu(), 2, return_indices=True)[0],
    "second reader": lambda z: (F.max_pool2d(y := z.relu(), 2), y.sum()),
    "read by the pool twice": lambda z: F.max_pool2d(y := z.relu(), 2) + F.max_pool2d(y, 2),
    "an output": lambda z: (F.max_pool2d(y := z.relu(), 2), y),
    "something between": lambda z: F.max_pool2d(z.relu() + 1, 2),
}


class Pooled(nn.Module):
    """A convolution and what follows it."""

    def __init__(self, after: After) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(4, 6, 3, padding=1), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.conv(x))


def _graph(after: After) -> fx.GraphModule:
    return normalise(capture(Pooled(after).eval(), (torch.randn(2, 4, 7, 7),)))


@pytest.mark.parametrize("case", POOLED)
def test_windows_that_do_not_overlap_are_found(case: str) -> None:
    after, kernel = POOLED[case]
    gm = _graph(after)
    (site,) = find_sites(gm)
    pool = next(node for node in gm.graph.nodes if node.target == torch.ops.aten.max_pool2d.default)
    assert site.pool == PoolWindow(pool.name, kernel)
    assert pool.args[0].name == site.activation_node


@pytest.mark.parametrize("case", MISSES)
def test_near_misses(case: str) -> None:
    (site,) = find_sites(_graph(MISSES[case]))
    assert site.pool is None
    assert site.obstacle == ""


def test_other_dimensions_are_none() -> None:
    for layer, pool, shape in ((nn.Conv1d, nn.MaxPool1d, (6,)), (nn.Conv3d, nn.MaxPool3d, (4, 4, 4))):
        model = nn.Sequential(layer(4, 6, 3, padding=1), nn.ReLU(), pool(2)).eval()
        (site,) = find_sites(capture(model, (torch.randn(2, 4, *shape),)))
        assert site.pool is None
