"""What is exported in these tests: the shipped CNN, staged, and a layer of OPT."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import exprune_fx as ex
from exprune_fx import zoo
from exprune_fx.guards import Bound, Calibrated, Guard
from tests.passes.staging import plan_for

IMAGES = 250
CALIBRATED = Calibrated(0.01)


def images() -> Tensor:
    """Real ones that calibration did not see: [250, 1, 28, 28]."""
    return zoo.load_sample().test_images[:IMAGES]


@cache
def captured_cnn() -> fx.GraphModule:
    """The shipped VGG with a symbolic batch."""
    return ex.capture(zoo.load("vgg_fashion"), (images()[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))


@cache
def calibrated() -> ex.Plan:
    return ex.calibrate(captured_cnn(), zoo.calibration_batches(250)[:1], guard=CALIBRATED)


@cache
def staged_cnn(guard: Guard = CALIBRATED, *, lower: bool) -> fx.GraphModule:
    """The shipped VGG, staged by a guard that needs no data, or by what was calibrated."""
    gm = captured_cnn()
    plan = plan_for(ex.normalise(gm), guard) if isinstance(guard, Bound) else calibrated()
    return ex.transform(gm, plan, lower=lower)


class OptLayer(nn.Module):
    """One decoder layer of transformers' OPT, without a mask."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        super().__init__()
        config = transformers.OPTConfig(
            hidden_size=64, word_embed_proj_dim=64, ffn_dim=256, num_attention_heads=4, attn_implementation="sdpa"
        )
        self.layer = transformers.models.opt.modeling_opt.OPTDecoderLayer(config, layer_idx=0)

    def forward(self, hidden: Tensor) -> Any:
        out = self.layer(hidden)
        return out[0] if isinstance(out, tuple) else out


def staged_opt_layer(*, lower: bool) -> tuple[fx.GraphModule, Tensor]:
    """The layer with symbolic rows and length, staged, and an input of 3 rows of 9 positions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = OptLayer().eval()
        for name, value in layer.named_parameters():
            nn.init.normal_(value.data, std=0.2) if name.endswith("bias") else None
        hidden = torch.randn(3, 9, 64)
    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length")}
    gm = ex.capture(layer, (hidden,), dynamic_shapes=({**dims},))
    return ex.transform(gm, ex.calibrate(gm, [(hidden,)], guard=Calibrated(0.05)), lower=lower), hidden
