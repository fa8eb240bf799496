from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from exprune_fx.errors import DataError
from exprune_fx.zoo import CLASSES, MEAN, STD, load_fashion_mnist, normalise
from exprune_fx.zoo.data import load_raw, read_idx
from tests.zoo.fashion import FOLDER, idx_bytes, needs_fashion, publish


def test_read_idx_gives_back_what_was_written(tmp_path: Path) -> None:
    array = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 4)
    path = tmp_path / "a.gz"
    path.write_bytes(idx_bytes(array))
    assert torch.equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"not gzip at all", "not a whole gzip file"),
        (idx_bytes(torch.zeros(9, dtype=torch.uint8))[:-9], "not a whole gzip file"),
        (gzip.compress(b"", mtime=0), "not an idx file"),
        (gzip.compress(b"\x00\x00\x0d\x01\x00\x00\x00\x00", mtime=0), "not an idx file"),  # type code of float32
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abcd", mtime=0), r"shape \(5,\), 5 bytes; 4 follow"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x03abcd", mtime=0), r"shape \(3,\), 3 bytes; 4 follow"),
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00", mtime=0), "header"),
    ],
    ids=["no gzip", "cut off", "empty", "floats", "too short", "too long", "no sizes"],  # no bytes of a clock in a name
)
def test_read_idx_refuses_what_is_not_idx(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "broken.gz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert "broken.gz" in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("subfolder", ["", "fashion-mnist"])
def test_both_layouts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subfolder: str) -> None:
    arrays = publish(tmp_path / subfolder, monkeypatch)
    images, labels = load_fashion_mnist(tmp_path, "train")
    pixels = arrays["train-images-idx3-ubyte.gz"]
    assert images.shape == (12, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(labels, arrays["train-labels-idx1-ubyte.gz"].long())
    # float32 rounding of three elementary operations on numbers below 4
    torch.testing.assert_close(images[:, 0].double(), (pixels.double() / 255 - MEAN) / STD, rtol=0, atol=2e-6)


def test_normalise_leaves_the_pixels_alone() -> None:
    pixels = torch.full((1, 28, 28), 255, dtype=torch.uint8)
    assert normalise(pixels).max().item() == pytest.approx((1 - MEAN) / STD, abs=1e-6)
    assert torch.equal(pixels, torch.full_like(pixels, 255))


def test_missing_file_names_the_file_and_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is neither in") as caught:
        load_fashion_mnist(tmp_path, "train")
    assert "download_fashion_mnist" in caught.value.hint


def test_wrong_checksum_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, monkeypatch)
    other = idx_bytes(torch.zeros(5, 28, 28, dtype=torch.uint8))  # a sound idx file, but not the published one
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(other)
    with pytest.raises(DataError, match="sha256"):
        load_fashion_mnist(tmp_path, "test")
    load_fashion_mnist(tmp_path, "train")  # the other split is not touched by it


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'valid'") as caught:
        load_fashion_mnist(tmp_path, "valid")  # type: ignore[arg-type]  # the point of the test
    assert "train, test" in caught.value.hint


@needs_fashion
def test_published_files_and_the_normalisation_constants() -> None:
    images, labels = load_raw(FOLDER, "train")
    assert images.shape == (60_000, 28, 28)
    assert torch.equal(labels.bincount(), torch.full((len(CLASSES),), 6000))
    scaled = images.double() / 255
    assert scaled.mean().item() == pytest.approx(MEAN, abs=5e-5)  # the constants have four digits
    assert scaled.std().item() == pytest.approx(STD, abs=5e-5)
    test_images, test_labels = load_raw(FOLDER, "test")
    assert test_images.shape == (10_000, 28, 28)
    assert torch.equal(test_labels.bincount(), torch.full((len(CLASSES),), 1000))
