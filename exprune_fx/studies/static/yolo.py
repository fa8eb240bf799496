"""YOLOv8n: does all of it group, shrink to half of its multiply-adds, run, and train?"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from exprune_fx.report.layout import Section
from exprune_fx.static import Expressiveness, shrink
from exprune_fx.static.report import ShrinkReport
from exprune_fx.studies.static.architectures.yolov8 import YOLOv8
from exprune_fx.studies.static.detection import CLASSES, Scenes, detection_loss, make_scenes
from exprune_fx.studies.static.tables import percent, section

Say = Callable[[str], None]


@dataclass(frozen=True)
class Detector:
    """What became of the network.

    Attributes:
        image_size: height and width, pixels.
        params: before and after.
        macs: multiply-adds of one image, before and after.
        groups: symmetry groups that could lose members.
        whole: groups that could not, each with its reason.
        channels: outputs of convolutions that belong to a group that could lose members, and all of them.
        outputs: channels of the raw maps, which stay: classes, and bins of boxes.
        images: of the made set.
        losses_dense: of each training step, of the network as it was.
        losses_shrunk: of each training step on the same images.
        shrink_s: wall time of shrinking, capture and scoring included.
        seed: of weights and images.
    """

    image_size: int
    params: tuple[int, int]
    macs: tuple[float, float]
    groups: int
    whole: dict[str, str]
    channels: tuple[int, int]
    outputs: int
    images: int
    losses_dense: tuple[float, ...]
    losses_shrunk: tuple[float, ...]
    shrink_s: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def run_yolo(
    say: Say,
    *,
    make: Callable[[int], YOLOv8] = YOLOv8,
    image_size: int = 160,
    images: int = 16,
    steps: int = 20,
    batch: int = 16,
    target_flops: float = 0.5,
    seed: int = 0,
) -> Detector:
    """Shrinks a network with random weights by expressiveness on made images, then trains it and the whole one alike.

    Args:
        say: told what is being done.
        make: the network for a number of classes.
        image_size: height and width, pixels, a multiple of 32.
        images: of the made set, which is gone through again and again.
        steps: of training.
        batch: images a step.
        target_flops: fraction of the multiply-adds that may remain.
        seed: of weights and images.
    """
    torch.manual_seed(seed)
    dense = make(len(CLASSES))
    scenes = make_scenes(images, image_size, seed)
    model = copy.deepcopy(dense)
    say("shrinking")
    start = time.perf_counter()
    batches = [(each,) for each in scenes.images.split(8)]
    small = shrink(model, (scenes.images[:2],), criterion=Expressiveness(batches), target_flops=target_flops)
    shrink_s = time.perf_counter() - start
    report = small.report
    own, every, outputs = _channels(dense, report)
    losses = {}
    for name, network in (("as it was", dense), ("shrunk", model)):
        say(f"training the network {name}")
        losses[name] = train_steps(network, scenes, steps, batch)
    return Detector(
        image_size=image_size,
        params=(report.params_before, report.params_after),
        macs=(report.flops_before / 2, report.flops_after / 2),
        groups=sum(not group.reason for group in report.groups),
        whole={group.name: group.reason for group in report.groups if group.reason},
        channels=(own, every),
        outputs=outputs,
        images=images,
        losses_dense=losses["as it was"],
        losses_shrunk=losses["shrunk"],
        shrink_s=shrink_s,
        seed=seed,
    )


def _channels(model: YOLOv8, report: ShrinkReport) -> tuple[int, int, int]:
    """Outputs of convolutions that may go, all of them, and those that are the network's own outputs."""
    may_go = {name for group in report.groups if not group.reason for name in group.layers}
    convolutions = {f"{path}.weight": m for path, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    last = {f"head.{branch}.{i}.2.weight" for branch in ("cv2", "cv3") for i in range(len(YOLOv8.strides))}
    inner = {name: m.out_channels for name, m in convolutions.items() if name not in last}
    outputs = sum(convolutions[name].out_channels for name in last)
    return sum(n for name, n in inner.items() if name in may_go), sum(inner.values()), outputs


def train_steps(model: YOLOv8, scenes: Scenes, steps: int, batch: int) -> tuple[float, ...]:
    """Adam on the scenes in turn; the loss of each step before it."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for step in range(steps):
        start = step * batch % len(scenes)
        part = scenes[start : start + batch]
        loss = detection_loss(model(part.images), model.strides, part)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return tuple(losses)


def yolo_sections(found: Detector) -> list[Section]:
    """Sizes, groups and losses."""
    size, (own, every) = found.image_size, found.channels
    sizes = [
        ("parameters", *(f"{value:,}" for value in found.params), percent(1 - found.params[1] / found.params[0], 1)),
        (
            f"multiply-adds of an image of {size} x {size}",
            *(f"{value / 1e6:,.1f} M" for value in found.macs),
            percent(1 - found.macs[1] / found.macs[0], 1),
        ),
    ]
    about = (
        f"Rebuilt from the published configuration, {len(CLASSES)} classes, random weights (seed {found.seed}), shrunk "
        f"by expressiveness on made images in {found.shrink_s:.0f} s. {found.groups} groups can lose members, "
        f"{len(found.whole)} cannot; {own:,} of the {every:,} channels between input and output are in the former."
    )
    rows = [
        (str(step + 1), f"{dense:.2f}", f"{shrunk:.2f}")
        for step, (dense, shrunk) in enumerate(zip(found.losses_dense, found.losses_shrunk, strict=True))
    ]
    return [
        section("YOLOv8n", about, ("", ">before", ">after", ">removed, %"), sizes),
        section(
            "Training steps",
            f"Loss of each step before it, Adam, on a made set of {found.images} images of coloured shapes: binary "
            "cross entropy of classes, and 1 - IoU and L1 of boxes, per object. The network as it was, and shrunk, "
            "from the same random weights.",
            (">step", ">as it was", ">shrunk"),
            rows,
        ),
    ]
