"""What the fused operators say to tensors that are not on the CPU: a lowered graph was moved to another device."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from exprune_fx.errors import KernelError

DEVICES = ("CUDA", "XPU", "MPS")
"""The dispatch keys of the devices that are told; of others torch says that there is no kernel."""

OPERATORS = (
    "staged_linear_relu", "staged_conv2d_relu", "staged_ffn", "staged_gated_ffn", "staged_argmax", "staged_topk",
)  # fmt: skip

_registered: list[torch.library.Library] = []  # what they say lasts as long as this


def register() -> None:
    """Registers a refusal for the operators, which must be loaded."""
    library = torch.library.Library("exprune", "IMPL")
    for operator in OPERATORS:
        for device in DEVICES:
            library.impl(operator, functools.partial(_refuse, operator), device)
    _registered.append(library)


def _refuse(operator: str, *args: object) -> Tensor:
    devices = sorted({str(value.device) for value in args if isinstance(value, Tensor)})
    raise KernelError(
        f"exprune::{operator} was given tensors on {' and '.join(devices)}, and its kernels run on the CPU",
        hint="capture and transform the model on that device, or transform(gm, plan, lower=False) and move the result",
    )
