"""Train a model of the zoo: `python -m exprune_fx.zoo.train --model vgg --data-dir DIR --out FILE`.

The shipped weights are those of these runs, DIR and the files apart:

    --model vgg --epochs 14 --bfloat16
    --model resnet --epochs 12 --bfloat16

The weights are those of the last step. An earlier run of the residual network, of four epochs, was given up as too
short.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from exprune_fx.zoo import training
from exprune_fx.zoo.data import load_raw, normalise
from exprune_fx.zoo.evaluate import accuracy
from exprune_fx.zoo.models import resnet_fashion, vgg_fashion
from exprune_fx.zoo.weights import load_weights, save_weights

FACTORIES: dict[str, Callable[[], nn.Module]] = {"vgg": vgg_fashion, "resnet": resnet_fashion}


@dataclass(frozen=True)
class Recipe(training.Recipe):
    """As the shipped models were trained; the seed is that of the initial weights too.

    Attributes:
        augmented: shift and mirror the images; a last epoch without it brings the model to the images as they are.
    """

    epochs: int = 12
    peak_lr: float = 0.15
    label_smoothing: float = 0.05
    bfloat16: bool = False
    augmented: bool = True


def augment(images: Tensor, generator: torch.Generator, pad: int = 2) -> Tensor:
    """Shift each image by up to `pad` pixels each way, black coming in at the border, and mirror half of them.

    Args:
        images: uint8, N x H x W.
        generator: decides the shifts and the mirrorings.
        pad: the largest shift, in pixels.

    Returns:
        uint8, N x H x W.
    """
    return training.augment(images[:, None], generator, pad)[:, 0]


def batches(images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
    """One epoch of whole batches in random order, augmented and normalised.

    Args:
        images: uint8, N x 28 x 28, N at least one batch.
        labels: int64, N.
        recipe: gives the batch size.
        generator: decides the order and the augmentation.

    Yields:
        (images float32 B x 1 x 28 x 28, labels int64 B); the rest that fills no batch is left out.
    """
    for chosen in training.drawn(len(images), recipe, generator):
        pixels = augment(images[chosen], generator) if recipe.augmented else images[chosen]
        yield normalise(pixels), labels[chosen]


def train(
    factory: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a fresh model by SGD with Nesterov momentum on a one-cycle schedule.

    Args:
        factory: makes the model with random weights.
        images: uint8, N x 28 x 28.
        labels: int64, N.
        recipe: the rest.
        on_step: called after each step with its number, from 0, and its loss.

    Returns:
        The model, in eval mode, in PyTorch's default memory format.

    Raises:
        DataError: there is no epoch, or fewer images than a batch.
    """
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    run = training.Training(factory(), len(images), recipe)
    step = 0
    for _ in range(recipe.epochs):
        for batch_images, batch_labels in batches(images, labels, recipe, generator):
            loss = run.step(batch_images, batch_labels)
            if on_step is not None:
                on_step(step, loss)
            step += 1
    return run.finish()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m exprune_fx.zoo.train", description="Train a model of the zoo.")
    parser.add_argument("--model", choices=sorted(FACTORIES), required=True)
    parser.add_argument("--data-dir", required=True, help="folder with Fashion-MNIST's four files")
    parser.add_argument("--out", required=True, help="where to write the float16 weights")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--batch-size", type=int, default=Recipe.batch_size)
    parser.add_argument("--peak-lr", type=float, default=Recipe.peak_lr)
    parser.add_argument("--init", help="go on from these weights; default: from nothing")
    parser.add_argument("--plain", action="store_true", help="train on the images as they are, not augmented")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast: faster where the CPU has it")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the weights, read them back, and print the accuracy on the 10,000 test images."""
    options = _parser().parse_args(argv)
    recipe = Recipe(
        epochs=options.epochs,
        seed=options.seed,
        batch_size=options.batch_size,
        peak_lr=options.peak_lr,
        augmented=not options.plain,
        bfloat16=options.bfloat16,
    )

    def start() -> nn.Module:
        model = FACTORIES[options.model]()
        if options.init is not None:
            load_weights(model, options.init)
        return model

    images, labels = load_raw(options.data_dir, "train")
    test_images, test_labels = load_raw(options.data_dir, "test")
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        total = recipe.epochs * (len(images) // recipe.batch_size)
        task = progress.add_task(options.model, total=total)
        model = train(
            start,
            images,
            labels,
            recipe,
            lambda _, loss: progress.update(task, advance=1, description=f"{options.model}, loss {loss:.3f}"),
        )
    save_weights(model, options.out)
    load_weights(model, options.out)  # what is reported is what was written: rounded to float16
    correct = accuracy(model, normalise(test_images), test_labels)
    console.print(f"{options.model}: {100 * correct:.2f} % of {len(test_labels)} test images; wrote {options.out}")


if __name__ == "__main__":
    main()
