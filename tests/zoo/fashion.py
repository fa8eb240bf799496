"""Where the whole data set may be, and a small made-up one in the published format."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from exprune_fx.zoo import data

TEST_IMAGES = int(os.environ.get("EXPRUNE_TEST_IMAGES", "1000"))
FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "datasets" / "fashion-mnist"

needs_fashion = pytest.mark.skipif(
    not (FOLDER / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="the whole Fashion-MNIST is not in shared/datasets/fashion-mnist beside the checkout",
)


def idx_bytes(array: Tensor) -> bytes:
    """A uint8 tensor as a gzip-compressed idx file, as LeCun's page defines it."""
    header = bytes([0, 0, 8, array.dim()]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.numpy().tobytes(), mtime=0)


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Write four small files under the published names and let their checksums count as the published ones."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in (("train", 12), ("test", 5)):
        images_name, labels_name = data.FILES[split]  # type: ignore[index]  # the keys are literals
        arrays[images_name] = torch.randint(0, 256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        arrays[labels_name] = torch.randint(0, 10, (count,), generator=generator, dtype=torch.uint8)
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / name).write_bytes(raw)
        monkeypatch.setitem(data.SHA256, name, hashlib.sha256(raw).hexdigest())
    return arrays
