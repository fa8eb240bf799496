"""What the commands let one choose from: plain names, so that ``--help`` imports nothing of what they stand for."""

from __future__ import annotations

SHIPPED = ("resnet_fashion", "vgg_fashion")
CLASSIFIERS = (*SHIPPED, "vgg11_bn_cifar10")
CRITERIA = ("expressiveness", "magnitude", "taylor", "bn-scale", "hybrid", "random")
RANKINGS = ("global", "layer")
CONSTANTS = ("exact", "mean", "drop")
OBJECTIVES = ("flops", "latency")
EXPERIMENTS = ("curves", "constants", "ranks", "yolo", "peers", "stacked")
SUBJECTS = ("vgg11", "resnet18", "gcn-hiv", "opt", "pruned-vgg11")
