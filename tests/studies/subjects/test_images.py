"""The subjects on CIFAR-10: their parts, their training, and pruned weights that stay away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exprune_fx.bench.vgg import vgg11_bn
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.cifar import Sizes
from exprune_fx.studies.subjects.networks import resnet18
from exprune_fx.studies.subjects.pruned_vgg11 import make_pruned_vgg11, prune_globally, zero_share
from exprune_fx.studies.subjects.resnet18 import make_resnet18
from exprune_fx.studies.subjects.training import train_classifier
from exprune_fx.studies.subjects.vgg11 import make_vgg11
from exprune_fx.zoo.training import Recipe, augment

SIZES = Sizes(4, 4, 5)
# torch 2.13's oneDNN hangs or crashes on processors without AVX-512 when 1x1 convolutions of 4 channels are trained in
# channels-last memory.
WIDTH = 8


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty images a file; the first pixel of each says which file and image it is."""
    for number in range(1, 6):
        delta = np.zeros((40, 3, 32, 32), np.uint8)
        delta[:, 1, 0, 0] = 40 * number + np.arange(40)
        np.savez(tmp_path / f"train_{number}.npz", delta=delta, labels=np.arange(40) % 10)
    return tmp_path


def test_parts_do_not_overlap(data: Path) -> None:
    torch.save(vgg11_bn().state_dict(), data / "vgg.pt")
    subject = make_vgg11(data, data / "vgg.pt", SIZES)
    parts = [subject.calibration, subject.selection.batches, subject.test.batches]
    assert [sum(len(batch[0]) for batch in part) for part in parts] == [4, 4, 5]
    shown = [set(torch.cat([batch[0] for batch in part])[:, 1, 0, 0].tolist()) for part in parts]
    assert not (shown[0] | shown[1]) & shown[2]
    assert not shown[0] & shown[1]
    assert [len(each) for each in shown] == [4, 4, 5]
    with pytest.raises(DataError, match="trained weights"):
        make_vgg11(data, None, SIZES)
    with pytest.raises(DataError, match="not there"):
        make_vgg11(data, data / "vgg.pt", Sizes(100, 4, 5))


def test_resnet_is_trained_once(data: Path) -> None:
    said: list[str] = []
    first = make_resnet18(data, data / "r.pt", SIZES, epochs=1, seed=0, say=said.append, width=WIDTH)
    assert len(said) == 1
    second = make_resnet18(data, data / "r.pt", SIZES, epochs=1, seed=0, say=said.append, width=WIDTH)
    assert len(said) == 1
    x = first.args[0]
    assert torch.equal(first.model(x), second.model(x))
    assert first.head_terms == WIDTH // 2
    assert not second.model.training
    with pytest.raises(DataError, match="weights of this"):
        make_resnet18(data, data / "r.pt", SIZES, epochs=1, seed=0, say=said.append, width=16)


def test_training_lowers_the_loss_and_keeps_what_is_pruned_at_zero() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet18(WIDTH, classes=2)
    masks = prune_globally(model, 0.5)
    assert zero_share(model) == pytest.approx(0.5, abs=1e-3)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randn(64, 3, 32, 32, generator=generator) + 2.0 * labels.view(-1, 1, 1, 1)
    losses: list[str] = []
    recipe = Recipe(epochs=6, batch_size=16, peak_lr=0.05, bfloat16=False)
    train_classifier(model, images, labels, recipe, losses.append, masks)
    numbers = [float(text.rpartition(" ")[2]) for text in losses]
    assert numbers[-1] < numbers[0] - 0.1
    assert zero_share(model) >= 0.5 - 1e-3
    for name, mask in masks.items():
        assert not model.get_parameter(name)[mask == 0].any()
    with pytest.raises(DataError, match="no training step"):
        train_classifier(nn.Linear(1, 1), images[:3], labels[:3], recipe, losses.append)


def test_smallest_weights_of_all_layers_go() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.arange(16).reshape(4, 4) + 1.0)
        model.get_parameter("1.weight").fill_(-100.0)
    prune_globally(model, 0.5)
    assert (model.get_parameter("0.weight") != 0).sum() == 4
    assert (model.get_parameter("1.weight") != 0).all()


def test_pruned_subject_counts_its_zeros(data: Path) -> None:
    torch.save(vgg11_bn().state_dict(), data / "vgg.pt")
    with pytest.raises(DataError, match="no weights to prune"):
        make_pruned_vgg11(data, None, None, SIZES, 1, 0, lambda _: None)
    model = vgg11_bn()
    prune_globally(model, 0.95)
    torch.save(model.state_dict(), data / "pruned.pt")
    subject = make_pruned_vgg11(data, None, data / "pruned.pt", SIZES, 1, 0, lambda _: None)
    assert subject.sparse
    assert "95.0 % of the weights zero" in subject.about


def test_augmentation_shifts_and_mirrors() -> None:
    images = torch.arange(2 * 3 * 6 * 6, dtype=torch.float32).reshape(2, 3, 6, 6) + 1
    made = augment(images, torch.Generator().manual_seed(0), pad=2)
    assert made.shape == images.shape
    assert set(made.flatten().tolist()) <= {0.0, *images.flatten().tolist()}
    assert torch.equal(augment(images, torch.Generator().manual_seed(0), pad=2), made)
    assert not torch.equal(made, images)
