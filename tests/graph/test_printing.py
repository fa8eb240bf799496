from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.graph import capture, python_text


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, extra: dict[str, Tensor]) -> dict[str, Any]:
        y = torch.relu(self.conv(x))
        y = torch.relu(y + x.sum(1, keepdim=True))
        z = self.fc(self.pool(y).flatten(1)) + extra["bias"].to(torch.float32)
        half = torch.cat([z, z]).split([x.shape[0], x.shape[0]])[0]
        return {"z": z, "size": x.shape[0], "rest": (half, [None])}


EXPECTED = """\
def forward(
    x,  # f32[s0, 3, 8, s1]
    extra_bias,  # f64[2]
):
    conv_weight = self.conv.weight  # f32[4, 3, 3, 3]
    fc_weight = self.fc.weight  # f32[2, 4]
    fc_bias = self.fc.bias  # f32[2]
    sym_size = aten.sym_size.int(x, 0)  # s0
    conv2d = aten.conv2d(x, conv_weight, None, [1, 1], [1, 1])  # f32[s0, 4, 8, s1] conv
    relu = aten.relu(conv2d)  # f32[s0, 4, 8, s1]
    sum = aten.sum.dim_IntList(x, [1], True)  # f32[s0, 1, 8, s1]
    add = aten.add.Tensor(relu, sum)  # f32[s0, 4, 8, s1]
    relu_1 = aten.relu(add)  # f32[s0, 4, 8, s1]
    adaptive_avg_pool2d = aten.adaptive_avg_pool2d(relu_1, [1, 1])  # f32[s0, 4, 1, 1] pool
    view = aten.view(adaptive_avg_pool2d, [sym_size, 4])  # f32[s0, 4]
    linear = aten.linear(view, fc_weight, fc_bias)  # f32[s0, 2] fc
    _to_copy = aten._to_copy(extra_bias, dtype=torch.float32)  # f32[2]
    add_1 = aten.add.Tensor(linear, _to_copy)  # f32[s0, 2]
    cat = aten.cat([add_1, add_1])  # f32[2*s0, 2]
    split_with_sizes = aten.split_with_sizes(cat, [sym_size, sym_size])  # (f32[s0, 2], f32[s0, 2])
    getitem = split_with_sizes[0]  # f32[s0, 2]
    return {'z': add_1, 'size': sym_size, 'rest': (getitem, [None])}
"""


def test_golden_text() -> None:
    args = (torch.randn(2, 3, 8, 6), {"bias": torch.randn(2, dtype=torch.float64)})
    gm = capture(Small(), args, dynamic_shapes=({0: Dim.AUTO, 3: Dim.AUTO}, {"bias": None}))
    text = python_text(gm)
    assert text == EXPECTED
    compile(text.replace("s0", "1"), "text", "exec")  # it is Python
