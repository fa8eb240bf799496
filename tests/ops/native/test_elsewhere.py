"""Fused operators on other devices than the CPU: they say so."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
from exprune_fx.ops.native import elsewhere


@pytest.mark.parametrize("operator", elsewhere.OPERATORS)
def test_every_fused_operator_refuses_other_devices(operator: str) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    name = f"exprune::{operator}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU")
    for device in elsewhere.DEVICES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, device)
    with pytest.raises(KernelError, match=r"on meta, and its kernels run on the CPU(.|\n)*lower=False"):
        elsewhere._refuse(operator, torch.empty(2, device="meta"), None, 3)


def test_no_fused_operator_is_forgotten() -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    names = {
        name.removeprefix("exprune::") for name in torch._C._dispatch_get_all_op_names() if "exprune::staged_" in name
    }
    assert names == set(elsewhere.OPERATORS)
