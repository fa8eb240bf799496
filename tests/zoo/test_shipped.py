from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from exprune_fx.errors import DataError
from exprune_fx.zoo import accuracy, load, load_fashion_mnist, load_sample, names
from tests.zoo.fashion import FOLDER, TEST_IMAGES, needs_fashion

DATA = Path(__file__).parents[2] / "exprune_fx" / "zoo" / "data"


def test_names() -> None:
    assert names() == ("resnet_fashion", "vgg_fashion")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="'alexnet'") as caught:
        load("alexnet")
    assert "resnet_fashion, vgg_fashion" in caught.value.hint


def test_all_shipped_data_together_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in DATA.iterdir()}
    assert set(sizes) == {"fashion_sample.npz", "resnet_fashion.pt", "vgg_fashion.pt"}
    assert sum(sizes.values()) <= 5_000_000


@pytest.mark.parametrize("name", names())
def test_weights_are_plain_float16(name: str) -> None:
    state = torch.load(DATA / f"{name}.pt", weights_only=True)
    floating = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    assert floating == {torch.float16}
    assert all(tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize("name", names())
def test_loaded_models_are_ready_and_separate(name: str) -> None:
    model, other = load(name), load(name)
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    shared = {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    assert not shared


@pytest.mark.parametrize("name", names())
def test_accuracy_on_the_shipped_images(name: str) -> None:
    sample = load_sample()
    assert accuracy(load(name), sample.test_images, sample.test_labels) >= 0.915


@needs_fashion
@pytest.mark.skipif(TEST_IMAGES < 10_000, reason="EXPRUNE_TEST_IMAGES is less than 10000")
@pytest.mark.parametrize("name", names())
def test_accuracy_on_the_whole_test_set(name: str) -> None:
    images, labels = load_fashion_mnist(FOLDER, "test")
    assert accuracy(load(name), images, labels) >= 0.92


def test_accuracy_counts_right_answers_over_uneven_batches() -> None:
    images = torch.arange(7.0).reshape(7, 1, 1, 1)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 9])

    def perfect_but_for_the_last(batch: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(batch.flatten().long(), 10).float()

    for batch_size in (1, 3, 7, 250):
        assert accuracy(perfect_but_for_the_last, images, labels, batch_size) == pytest.approx(6 / 7)


@pytest.mark.parametrize(("images", "labels", "batch_size"), [(0, 0, 1), (3, 2, 1), (3, 3, 0)])
def test_accuracy_of_nothing_is_refused(images: int, labels: int, batch_size: int) -> None:
    with pytest.raises(DataError, match=f"accuracy of {images} images with {labels} labels"):
        accuracy(lambda batch: batch.flatten(1), torch.zeros(images, 1, 2, 5), torch.zeros(labels).long(), batch_size)
