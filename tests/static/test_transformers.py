"""Models of transformers, whose code takes numbers of heads and sizes from attributes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.static import Magnitude, shrink


def bert(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = library.BertConfig(
        vocab_size=60, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return library.BertForSequenceClassification(config), (torch.randint(0, 50, (2, 7)),)


def swin(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = library.SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[2], num_heads=[2], window_size=4)
    return library.SwinForImageClassification(config), (torch.randn(2, 3, 32, 32),)


def regnet(library: Any) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    config = library.RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8)
    return library.RegNetForImageClassification(config), (torch.randn(2, 3, 32, 32),)


@pytest.mark.parametrize("make", [bert, swin, regnet])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # transformers' own
def test_all_of_its_groups_shrink_in_place_and_it_trains(make: Any) -> None:
    library = pytest.importorskip("transformers", exc_type=ImportError)
    torch.manual_seed(0)
    model, args = make(library)
    small = shrink(model, args, criterion=Magnitude(), fraction_removed=0.4, ranking="layer")
    assert not [group.name for group in small.report.groups if group.reason]
    assert all(group.removed > 0 for group in small.report.groups if group.members > 4)
    assert sum(p.numel() for p in model.parameters()) < 0.6 * small.report.params_before
    model.train()(*args).logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
