"""What holds for every fused convolution, whatever its head."""

from __future__ import annotations

from typing import Any

import torch


def check_images_decide_alone(arguments: list[Any]) -> None:
    """Each image of the batch gives the same bits alone, and any number of threads gives them too."""
    together = torch.ops.exprune.staged_conv2d_relu(*arguments)
    alone = [torch.ops.exprune.staged_conv2d_relu(image[None], *arguments[1:]) for image in arguments[0]]
    assert torch.equal(together, torch.cat(alone))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(together, torch.ops.exprune.staged_conv2d_relu(*arguments))
    finally:
        torch.set_num_threads(threads)
