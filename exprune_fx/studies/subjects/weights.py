"""Weights of a subject: read from a file, or made once by training and then written there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from exprune_fx.errors import DataError
from exprune_fx.zoo.weights import save_weights

FileName = str | os.PathLike[str]


def read_weights(model: nn.Module, path: FileName) -> None:
    """Reads a state dict into a model, in eval mode afterwards; half precision becomes the model's own.

    Raises:
        DataError: there is no such file, or it is of another model.
    """
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises whatever its archive's reader raises
        raise DataError(
            f"{os.fspath(path)} does not hold the weights of this {type(model).__name__}: "
            f"{type(error).__name__}: {error}",
            hint="give the file that an earlier run wrote, or a path that is not there yet",
        ) from error
    model.eval()


def read_or_train(model: nn.Module, path: FileName | None, train: Callable[[], None]) -> bool:
    """Reads the weights, or trains them and writes them as float16; the model has what the file has.

    Args:
        model: whose weights.
        path: the file; None keeps nothing.
        train: trains the model in place.

    Returns:
        Whether they were trained now.

    Raises:
        DataError: the file is of another model.
    """
    if path is not None and Path(path).is_file():
        read_weights(model, path)
        return False
    train()
    if path is not None:
        save_weights(model, path)
        read_weights(model, path)
    model.eval()
    return True
