"""Fashion-MNIST: the original files, checked by sha256, read as tensors.

Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747; MIT license) is 60,000 training and 10,000 test images of
28 x 28 grey pixels in ten classes.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from exprune_fx.errors import DataError

Split = Literal["train", "test"]

MEAN = 0.2860
"""Mean of the 60,000 training images, pixels scaled to 0..1."""
STD = 0.3530
"""Standard deviation of the 60,000 training images, pixels scaled to 0..1."""

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""The name of each label, 0 to 9."""

FILES: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
"""The image file and the label file of each split."""

SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}


def normalise(images: Tensor) -> Tensor:
    """Pixels as the models want them: (p / 255 - MEAN) / STD.

    Args:
        images: uint8, N x 28 x 28.

    Returns:
        float32, N x 1 x 28 x 28.
    """
    return (images.unsqueeze(1).to(torch.float32) / 255 - MEAN) / STD


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_file(data_dir: Path, name: str) -> Path | None:
    """Where one of Fashion-MNIST's files is: in the folder itself, else in its subfolder `fashion-mnist`, else None."""
    for path in (data_dir / name, data_dir / "fashion-mnist" / name):
        if path.is_file():
            return path
    return None


def read_idx(path: Path) -> Tensor:
    """Read one gzip-compressed idx file of unsigned bytes.

    Args:
        path: the file. Its header is two zero bytes, the type code 8 (unsigned byte), the number of dimensions, and
            each dimension as a big-endian 32-bit integer.

    Returns:
        uint8, shaped as the header says.

    Raises:
        DataError: the file is not gzip, not idx of unsigned bytes, or its length disagrees with its header.
    """
    hint = "delete the file and fetch it again"
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}", hint=hint) from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise DataError(f"{path} is not an idx file of unsigned bytes: it starts with {raw[:4]!r}", hint=hint)
    body = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(4, body, 4))
    expected = math.prod(shape)
    if len(raw) - body != expected:
        raise DataError(f"{path}: header says shape {shape}, {expected} bytes; {len(raw) - body} follow", hint=hint)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=body).reshape(shape)


def load_raw(data_dir: str | os.PathLike[str], split: Split) -> tuple[Tensor, Tensor]:
    """One whole split as it was published.

    Args:
        data_dir: the folder that holds the four files, itself or in its subfolder `fashion-mnist`.
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        Images, uint8, N x 28 x 28; labels, int64, N.

    Raises:
        DataError: no such split, a file is missing, or its sha256 is not the published file's.
    """
    if split not in FILES:
        raise DataError(f"Fashion-MNIST has no split {split!r}", hint=f"use one of {', '.join(FILES)}")
    parts = []
    for name in FILES[split]:
        path = find_file(Path(data_dir), name)
        if path is None:
            raise DataError(
                f"Fashion-MNIST's file {name} is neither in {data_dir} nor in its subfolder fashion-mnist",
                hint=f"call exprune_fx.zoo.download_fashion_mnist({str(data_dir)!r}), or name the folder that has it",
            )
        found = sha256_of(path)
        if found != SHA256[name]:
            raise DataError(
                f"{path} is not the published file: its sha256 is {found}, not {SHA256[name]}",
                hint="delete it and fetch it again, e.g. with exprune_fx.zoo.download_fashion_mnist",
            )
        parts.append(read_idx(path))
    images, labels = parts
    return images, labels.to(torch.int64)


def load_fashion_mnist(data_dir: str | os.PathLike[str], split: Split) -> tuple[Tensor, Tensor]:
    """One whole split, ready for the models.

    Args:
        data_dir: the folder that holds the four files, itself or in its subfolder `fashion-mnist`.
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        Images, float32, N x 1 x 28 x 28, normalised by `normalise`; labels, int64, N.

    Raises:
        DataError: no such split, a file is missing, or its sha256 is not the published file's.
    """
    images, labels = load_raw(data_dir, split)
    return normalise(images), labels
