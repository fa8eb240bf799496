from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.zoo import Sample, calibration_batches, load_fashion_mnist, load_sample
from exprune_fx.zoo.sample import choose_calibration, write_sample
from tests.zoo.fashion import FOLDER, needs_fashion


@pytest.fixture(scope="module")
def sample() -> Sample:
    return load_sample()


def test_shapes_and_types(sample: Sample) -> None:
    assert sample.calibration_images.shape == (1000, 1, 28, 28)
    assert sample.test_images.shape == (2000, 1, 28, 28)
    assert sample.calibration_labels.shape == (1000,)
    assert sample.test_labels.shape == (2000,)
    assert {sample.calibration_images.dtype, sample.test_images.dtype} == {torch.float32}
    assert {sample.calibration_labels.dtype, sample.test_labels.dtype} == {torch.int64}


def test_calibration_is_balanced_in_every_large_part(sample: Sample) -> None:
    assert torch.equal(sample.calibration_labels.bincount(), torch.full((10,), 100))
    # In random order: 250 of 1,000 without replacement, 25 of each class expected, standard deviation 4.1.
    for part in sample.calibration_labels.split(250):
        assert part.bincount(minlength=10).min() >= 8


def test_the_images_are_normalised(sample: Sample) -> None:
    # 1,000 images: the mean of one image varies by 0.4 or so, hence 0.05 is about four standard errors
    assert abs(sample.calibration_images.mean().item()) < 0.05
    assert abs(sample.calibration_images.std().item() - 1) < 0.05


def test_choice_is_fixed_and_without_repeats() -> None:
    labels = torch.arange(3000) % 10
    chosen = choose_calibration(labels)
    assert torch.equal(chosen, choose_calibration(labels))
    assert len(chosen.unique()) == 1000
    assert torch.equal(labels[chosen].bincount(), torch.full((10,), 100))


def test_calibration_batches_are_tuples_of_arguments(sample: Sample) -> None:
    batches = calibration_batches(batch_size=300)
    assert [type(batch) for batch in batches] == [tuple] * 4
    assert [len(batch) for batch in batches] == [1] * 4
    assert [len(images) for (images,) in batches] == [300, 300, 300, 100]
    assert torch.equal(torch.cat([images for (images,) in batches]), sample.calibration_images)
    assert len(calibration_batches()) == 10


def test_a_batch_needs_an_image() -> None:
    with pytest.raises(DataError, match="0 images"):
        calibration_batches(batch_size=0)


@needs_fashion
def test_what_ships_is_what_the_published_files_give(sample: Sample, tmp_path: Path) -> None:
    write_sample(FOLDER, tmp_path / "again.npz")
    shipped = Path(__file__).parents[2] / "exprune_fx" / "zoo" / "data" / "fashion_sample.npz"
    with np.load(tmp_path / "again.npz") as again, np.load(shipped) as kept:
        assert set(again.files) == set(kept.files)
        for name in again.files:
            np.testing.assert_array_equal(again[name], kept[name])
    images, labels = load_fashion_mnist(FOLDER, "test")
    assert torch.equal(images[:2000], sample.test_images)
    assert torch.equal(labels[:2000], sample.test_labels)
