"""What every pass must satisfy, whatever it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from exprune_fx.graph import copy_graph_module, python_text, verify
from exprune_fx.pass_manager import Pass, PassResult
from tests.captures import captured_alike
from tests.graph.models import randomise


def captured(model: nn.Module, *shape: int, dtype: torch.dtype = torch.float64) -> tuple[fx.GraphModule, torch.Tensor]:
    """A model with randomised state, captured with a symbolic batch, and another input for it."""
    model = randomise(model.to(dtype).eval())
    gm = captured_alike(model, torch.randn(*shape, dtype=dtype), ({0: Dim.AUTO},))
    return gm, torch.randn(shape[0] + 1, *shape[1:], dtype=dtype)


def body(gm: fx.GraphModule) -> str:
    """The printed graph's calls and output, without signature, tensors and comments."""
    lines = [line.split("  # ")[0].strip() for line in python_text(gm).splitlines() if line.startswith("    ")]
    calls = [line for line in lines if line.startswith("return") or (" = " in line and " = self" not in line)]
    return "\n".join(calls) + "\n"


def apply(step: Pass, gm: fx.GraphModule, *inputs: Any, edits: int, tolerance: float = 0.0) -> fx.GraphModule:
    """Runs a pass; checks the count of edits, the values, that the input is untouched and a second run does nothing."""
    text, tensors = python_text(gm), {name: (id(t), t._version) for name, t in gm.state_dict(keep_vars=True).items()}
    result = step(gm)
    assert result.edits == edits
    assert result.changed == (edits > 0)
    verify(result.graph_module, after=step.name)
    assert python_text(gm) == text
    assert {name: (id(t), t._version) for name, t in gm.state_dict(keep_vars=True).items()} == tensors
    with torch.no_grad():
        torch.testing.assert_close(result.graph_module(*inputs), gm(*inputs), rtol=tolerance, atol=tolerance)
    assert step(result.graph_module) == PassResult(result.graph_module, changed=False, edits=0)
    verify(copy_graph_module(result.graph_module))
    return result.graph_module
