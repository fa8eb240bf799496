"""Model rows: trained models staged by calibration, with their own held-out examples, and the decoder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx import zoo
from exprune_fx.bench import opt_shaped, vgg
from exprune_fx.bench.subject import HeldOut, RowSpec, Say, Subject
from exprune_fx.calibration import calibrate
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.ops import native
from exprune_fx.plan import Objective, Plan

BUDGET = 0.01
CALIBRATION_BATCH = 250
VGG_CALIBRATION_PER_FILE = 500
TURNS = 16
OPT_DTYPES = (torch.float32, torch.bfloat16)

Folder = str | os.PathLike[str] | None


def model_names(checkpoints: Folder = None) -> tuple[str, ...]:
    """The models that can be run: VGG11-BN only with its checkpoint."""
    trained = (vgg.NAME,) if checkpoints is not None and (Path(checkpoints) / vgg.CHECKPOINT).is_file() else ()
    return (*zoo.names(), *trained, opt_shaped.NAME)


def model_specs(
    checkpoints: Folder = None,
    data_dir: Folder = None,
    dtypes: Sequence[torch.dtype] | None = None,
    batch: int | None = None,
    budget: float = BUDGET,
    plan: Plan | None = None,
) -> Iterator[RowSpec]:
    """All model rows.

    Args:
        checkpoints: folder of trained weights; without VGG11-BN's, its row is left out.
        data_dir: folder of CIFAR-10 (for VGG11-BN) and of Fashion-MNIST (else the shipped sample is judged on).
        dtypes: of every row; by default float32, the decoder in bfloat16 too.
        batch: examples a call; by default 1.
        budget: of the calibrated guard.
        plan: by which trained models are staged instead of being calibrated; the decoder keeps its own.
    """
    size = batch or 1
    for name in model_names(checkpoints):
        own = OPT_DTYPES if name == opt_shaped.NAME else (torch.float32,)
        for dtype in dtypes or own:
            make: Callable[[Say], Subject]
            if name == opt_shaped.NAME:
                make = partial(opt_shaped.make_opt_shaped, dtype, size)
            elif name == vgg.NAME:
                assert checkpoints is not None
                make = partial(make_vgg, checkpoints, data_dir, dtype, size, plan or budget)
            else:
                make = partial(make_zoo, name, data_dir, dtype, size, plan or budget)
            yield RowSpec(name, "model", dtype, size, make)


def make_zoo(name: str, data_dir: Folder, dtype: torch.dtype, batch: int, how: Plan | float, say: Say) -> Subject:
    """A zoo model, staged by a plan or calibrated on the shipped calibration images, judged on test images.

    Raises:
        DataError: the data are not there.
    """
    sample = zoo.load_sample()
    images, labels = sample.test_images, sample.test_labels
    if data_dir is not None and _has_fashion_mnist(data_dir):
        images, labels = zoo.load_fashion_mnist(data_dir, "test")
    return _calibrated(name, zoo.load(name), sample.calibration_images, HeldOut(images, labels), dtype, batch, how, say)


def make_vgg(
    checkpoints: Folder, data_dir: Folder, dtype: torch.dtype, batch: int, how: Plan | float, say: Say
) -> Subject:
    """VGG11-BN, staged by a plan or calibrated on 2,000 images that trained it, judged on 10,000 that did not.

    Raises:
        DataError: weights or images are not there.
    """
    if checkpoints is None or data_dir is None:
        raise DataError(
            f"{vgg.NAME} needs CIFAR-10", hint="give --data-dir, a folder with cifar10/train_1.npz to train_5"
        )
    say("images")
    parts = [vgg.load_images(data_dir, name)[0][:VGG_CALIBRATION_PER_FILE] for name in vgg.CALIBRATION]
    held_out = HeldOut(*vgg.load_images(data_dir, vgg.HELD_OUT))
    return _calibrated(vgg.NAME, vgg.load_vgg(checkpoints), torch.cat(parts), held_out, dtype, batch, how, say)


def _has_fashion_mnist(folder: str | os.PathLike[str]) -> bool:
    name = zoo.data.FILES["test"][0]
    return zoo.data.find_file(Path(folder), name) is not None


def _calibrated(
    name: str,
    model: nn.Module,
    calibration: Tensor,
    held_out: HeldOut,
    dtype: torch.dtype,
    batch: int,
    how: Plan | float,
    say: Say,
) -> Subject:
    """A classifier of images, staged by a plan or by ``calibrate``; timed on the first held-out images in turn."""
    model = model.to(dtype)
    held_out = HeldOut(held_out.images.to(dtype), held_out.labels)
    gm = capture(model, (held_out.images[:2],), dynamic_shapes=({0: Dim.AUTO},))
    if isinstance(how, Plan):
        plan, about = how, f"a plan made on {how.examples:,} examples, objective {how.objective}"
    else:
        say(f"calibrating on {len(calibration):,} images")
        batches = [(images,) for images in calibration.to(dtype).split(CALIBRATION_BATCH)]
        objective: Objective = "latency" if native.available() else "flops"
        latency_batch = (calibration[:batch].to(dtype),)
        plan = calibrate(gm, batches, Calibrated(how), objective=objective, latency_batch=latency_batch)
        about = f"Calibrated({how:g}) on {len(calibration):,} images, objective {plan.objective}"
    inputs = tuple((images.clone(),) for images in held_out.images[: TURNS * batch].split(batch))
    return Subject(name, "model", dtype, batch, model, gm, plan, inputs, about, held_out)
