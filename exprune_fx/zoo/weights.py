"""Weights as float16 files: half the size, and what the zoo's accuracy figures are measured on."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import IO

import torch
from torch import nn

from exprune_fx.errors import DataError
from exprune_fx.files import written_whole
from exprune_fx.zoo.models import resnet_fashion, vgg_fashion

MODELS: dict[str, Callable[[], nn.Module]] = {"resnet_fashion": resnet_fashion, "vgg_fashion": vgg_fashion}
"""What makes each shipped model; its weights are in the package, in `data/<name>.pt`."""


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's state dict with its floating-point tensors rounded to float16; whole or not at all.

    Args:
        model: whose parameters and buffers to write.
        path: the file; an existing one is replaced.

    Raises:
        DataError: a tensor has values that float16 cannot hold.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        small = tensor.detach().to(torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        if not torch.isfinite(small).all():
            raise DataError(
                f"{name} (shape {tuple(tensor.shape)}) has values that float16 cannot hold",
                hint="train again with a lower learning rate",
            )
        state[name] = small.clone()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as (file,):
        torch.save(state, file)


def load_weights(model: nn.Module, file: str | os.PathLike[str] | IO[bytes]) -> None:
    """Read what `save_weights` wrote into a model; float16 becomes the model's own dtype.

    Args:
        model: of the same architecture as the one that was saved.
        file: the path, or the opened file.

    Raises:
        DataError: the weights are of another architecture.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise DataError(
            f"the weights do not fit {type(model).__name__}: {error}", hint="name the right model"
        ) from error


def names() -> tuple[str, ...]:
    """The names of the shipped models, for `load`."""
    return tuple(MODELS)


def load(name: str) -> nn.Module:
    """A shipped model with its trained weights.

    Args:
        name: one of `names()`.

    Returns:
        The model, float32, in eval mode: N x 1 x 28 x 28 normalised images to N x 10 logits.

    Raises:
        DataError: there is no model of that name, or the installation lacks its weights.
    """
    if name not in MODELS:
        raise DataError(f"the zoo has no model {name!r}", hint=f"use one of {', '.join(names())}")
    resource = resources.files("exprune_fx.zoo").joinpath("data", f"{name}.pt")
    if not resource.is_file():
        raise DataError(f"the installed library lacks zoo/data/{name}.pt", hint="install exprune_fx again")
    model = MODELS[name]()
    with resource.open("rb") as file:
        load_weights(model, file)
    return model.eval()
