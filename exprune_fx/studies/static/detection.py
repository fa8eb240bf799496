"""A made detection set, coloured shapes on noise, and a plain loss for raw YOLOv8 maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from exprune_fx.studies.static.architectures.yolov8 import REG_MAX

CLASSES = ("rectangle", "disc", "cross")
_LARGEST = (32, 64)  # sides up to which an object belongs to the first and the second scale, pixels


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with what is on them.

    Attributes:
        images: float32, N x 3 x size x size, 0 to 1.
        boxes: one for each image: float32, objects x 4, left, top, right, bottom in pixels.
        classes: one for each image: int64, objects.
    """

    images: Tensor
    boxes: tuple[Tensor, ...]
    classes: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, part: slice) -> Scenes:
        return Scenes(self.images[part], self.boxes[part], self.classes[part])


def make_scenes(count: int, size: int = 160, seed: int = 0) -> Scenes:
    """Draws one to three shapes on each image; later ones cover earlier ones.

    Args:
        count: images.
        size: height and width, pixels, at least 64.
        seed: decides everything.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, 3, size, size, generator=generator)
    boxes, classes = [], []
    for image in images:
        objects = int(torch.randint(1, 4, (), generator=generator))
        side = torch.randint(16, size // 2, (objects, 2), generator=generator)
        corner = (torch.rand(objects, 2, generator=generator) * (size - side)).long()
        kinds = torch.randint(len(CLASSES), (objects,), generator=generator)
        colours = 0.4 + 0.6 * torch.rand(objects, 3, generator=generator)
        found = torch.cat([corner, corner + side], 1)
        for box, kind, colour in zip(found, kinds, colours, strict=True):
            image[:, _inside(box, int(kind), size)] = colour[:, None]
        boxes.append(found.float())
        classes.append(kinds)
    return Scenes(images, tuple(boxes), tuple(classes))


def _inside(box: Tensor, kind: int, size: int) -> Tensor:
    """Bool, size x size: the pixels of one shape."""
    left, top, right, bottom = box.tolist()
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    # From -1 to 1 within the box.
    across, down = (2 * x + 1 - left - right) / (right - left), (2 * y + 1 - top - bottom) / (bottom - top)
    within = (across.abs() <= 1) & (down.abs() <= 1)
    shapes: tuple[Tensor, ...] = (
        within,
        across.square() + down.square() <= 1,
        within & ((across.abs() < 0.35) | (down.abs() < 0.35)),
    )
    return shapes[kind]


def detection_loss(maps: Sequence[Tensor], strides: Sequence[int], scenes: Scenes) -> Tensor:
    """Binary cross entropy of all cells' classes, and 1 - IoU and L1 of the boxes of assigned cells, per object.

    An object belongs to the cell that holds its centre, on the scale that suits its longer side.

    Args:
        maps: raw, N x (4 * REG_MAX + classes) x H x W of each scale.
        strides: pixels of a cell's side on each scale.
        scenes: what the maps were computed from.
    """
    objects = sum(len(each) for each in scenes.boxes)
    total = maps[0].new_zeros(())
    for scale, (found, stride) in enumerate(zip(maps, strides, strict=True)):
        image, row, column, boxes, kinds = _assigned(scenes, scale, stride)
        logits = found[:, 4 * REG_MAX :]
        wanted = torch.zeros_like(logits)
        wanted[image, kinds, row, column] = 1.0
        total = total + F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        if len(image):
            raw = found[image, : 4 * REG_MAX, row, column].unflatten(1, (4, REG_MAX))
            reach = (raw.softmax(2) * torch.arange(REG_MAX)).sum(2)  # left, top, right, bottom, in cells
            centre = torch.stack([column, row], 1) + 0.5
            got = torch.cat([centre - reach[:, :2], centre + reach[:, 2:]], 1) * stride
            total = total + (1 - _iou(got, boxes)).sum() + (got - boxes).abs().mean(1).sum() / stride
    return total / max(objects, 1)


def _assigned(scenes: Scenes, scale: int, stride: int) -> tuple[Tensor, ...]:
    """Image, row, column, box and class of the objects of one scale."""
    image = torch.cat([torch.full((len(each),), i) for i, each in enumerate(scenes.boxes)])
    boxes, kinds = torch.cat(scenes.boxes), torch.cat(scenes.classes)
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    own = torch.bucketize(side, torch.tensor(_LARGEST, dtype=side.dtype)) == scale
    cells = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).long()
    return image[own], cells[own, 1], cells[own, 0], boxes[own], kinds[own]


def _iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes, pair by pair."""
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    whole = sum((each[:, 2:] - each[:, :2]).clamp(min=0).prod(1) for each in (one, other)) - common
    return common / whole.clamp(min=1e-6)
