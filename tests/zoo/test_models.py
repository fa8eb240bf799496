from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.zoo import resnet_fashion, vgg_fashion
from exprune_fx.zoo.models import BasicBlock

FACTORIES = [vgg_fashion, resnet_fashion]


def conv_macs(model: nn.Module) -> dict[str, int]:
    """Multiply-adds of each convolution for one image, from its own weight and the size of what it puts out."""
    macs: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
            assert isinstance(module, nn.Conv2d)
            macs[name] = out.shape[2] * out.shape[3] * module.weight.numel()

        return hook

    handles = [
        module.register_forward_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 1, 28, 28))
    for handle in handles:
        handle.remove()
    return macs


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes(factory: Callable[[], nn.Module], batch: int) -> None:
    out = factory().eval()(torch.zeros(batch, 1, 28, 28))
    assert out.shape == (batch, 10)
    assert out.dtype == torch.float32


@pytest.mark.parametrize("factory", FACTORIES)
def test_most_work_can_be_staged(factory: Callable[[], nn.Module]) -> None:
    model = factory()
    macs = conv_macs(model)
    total = sum(macs.values())
    first, *_ = macs
    assert macs[first] < 0.05 * total  # one input channel: nothing to take a prefix of
    stageable = sum(
        count for name, count in macs.items() if _conv(model, name).in_channels >= 32 and "short" not in name
    )
    assert stageable > 0.9 * total
    assert all(_conv(model, name).bias is None for name in macs)


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Conv2d)
    return module


@pytest.mark.parametrize("factory", FACTORIES)
def test_exports_with_a_dynamic_batch(factory: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = factory().eval()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 1, 28, 28)
    # the same kernels in the same order; a fused form may round differently
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-5, atol=1e-5)


def test_the_residual_network_adds_in_every_block() -> None:
    model = resnet_fashion().eval()
    identity = [block for block in model.blocks if isinstance(block.shortcut, nn.Identity)]
    assert len(model.blocks) == 4
    assert len(identity) == 1
    block = identity[0]
    assert isinstance(block, BasicBlock)
    nn.init.zeros_(block.bn2.weight)  # the branch gives 0, so only the shortcut is left
    x = torch.randn(2, 96, 7, 7)
    assert torch.equal(block(x), x.relu())
