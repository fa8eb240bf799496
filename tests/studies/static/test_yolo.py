"""The made detection set, its loss, and a narrow YOLOv8 that shrinks and trains."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.studies.static.architectures import ARCHITECTURES
from exprune_fx.studies.static.architectures.yolov8 import REG_MAX, YOLOv8
from exprune_fx.studies.static.detection import CLASSES, Scenes, detection_loss, make_scenes
from exprune_fx.studies.static.yolo import run_yolo, yolo_sections

PUBLISHED = {
    "resnet18": 11_689_512, "resnet50": 25_557_032, "densenet121": 7_978_856, "mobilenet_v2": 3_504_872,
    "vgg16": 138_357_544, "vgg16_bn": 138_365_992, "vit_b16": 86_567_656,
    "yolov8n": 3_157_200 - REG_MAX,  # less the fixed numbers of the decoder
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_have_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ARCHITECTURES[name]().parameters()) == PUBLISHED[name]


def test_scenes_are_of_the_seed_and_boxes_are_around_shapes() -> None:
    one, again, other = make_scenes(6, 64, 1), make_scenes(6, 64, 1), make_scenes(6, 64, 2)
    assert torch.equal(one.images, again.images)
    assert not torch.equal(one.images, other.images)
    for image, boxes, classes in zip(one.images, one.boxes, one.classes, strict=True):
        assert 1 <= len(boxes) == len(classes) <= 3
        assert bool((boxes[:, 2:] - boxes[:, :2] >= 16).all())
        assert bool((boxes >= 0).all() & (boxes <= 64).all())
        left, top, right, bottom = boxes[-1].int().tolist()  # the last is covered by none
        inside = image[:, top:bottom, left:right].flatten(1)
        assert bool((inside > 0.35).all(0).any()), "something is drawn there"
    outside = one.images[0].clone()
    for left, top, right, bottom in one.boxes[0].int().tolist():
        outside[:, top:bottom, left:right] = 0
    assert float(outside.max()) <= 0.3, "all else is the background"


def test_the_loss_is_least_for_maps_that_say_what_is_there() -> None:
    """One object of 40 x 24 pixels, its centre in the middle of cell (3, 2) of the scale of stride 16."""
    box = torch.tensor([[20.0, 44.0, 60.0, 68.0]])
    scenes = Scenes(torch.zeros(1, 3, 96, 96), (box,), (torch.tensor([2]),))
    strides = YOLOv8.strides
    maps = [torch.full((1, 4 * REG_MAX + len(CLASSES), 96 // s, 96 // s), -20.0) for s in strides]
    for each in maps:
        each[:, : 4 * REG_MAX] = 0.0
    right = [each.clone() for each in maps]
    right[1][0, 4 * REG_MAX + 2, 3, 2] = 20.0
    distances = right[1][0, : 4 * REG_MAX, 3, 2].view(4, REG_MAX)
    distances[:] = -40.0
    for side, bins in enumerate(((1, 2), (0, 1), (1, 2), (1, 1))):
        distances[side, list(bins)] = 40.0  # 1.25 cells would be 1 and 2 in three to one; see below
    distances[0] = distances[2] = torch.tensor([-40.0] * REG_MAX)
    for side in (0, 2):  # 1.25 = 0.75 * 1 + 0.25 * 2
        distances[side, 1], distances[side, 2] = torch.tensor(0.75).log(), torch.tensor(0.25).log()
    for side in (1, 3):  # 0.75 = 0.25 * 0 + 0.75 * 1
        distances[side] = -40.0
        distances[side, 0], distances[side, 1] = torch.tensor(0.25).log(), torch.tensor(0.75).log()
    assert float(detection_loss(right, strides, scenes)) == pytest.approx(0, abs=1e-4)
    wrong_class = [each.clone() for each in right]
    wrong_class[1][0, 4 * REG_MAX :, 3, 2] = torch.tensor([20.0, -20.0, -20.0])
    assert float(detection_loss(wrong_class, strides, scenes)) == pytest.approx(40, abs=0.1)
    assert float(detection_loss(maps, strides, scenes)) > 20


def test_a_narrow_network_groups_wholly_shrinks_and_trains() -> None:
    found = run_yolo(
        lambda _: None,
        make=lambda classes: YOLOv8(classes, 4, (1, 1, 1, 1)),
        image_size=64,
        images=8,
        steps=10,
        batch=8,
    )
    assert not found.whole
    assert found.channels[0] == found.channels[1]
    assert found.macs[1] / found.macs[0] == pytest.approx(0.5, abs=0.02)
    assert found.macs[1] <= 0.5 * found.macs[0]
    assert found.params[1] < found.params[0]
    for losses in (found.losses_dense, found.losses_shrunk):
        assert len(losses) == 10
        assert losses[-1] < 0.8 * losses[0]
    assert len(yolo_sections(found)) == 2
