"""The graph network on MoleculeNet's HIV set, by its scaffold split."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

from exprune_fx.studies.subjects.cifar import Folder, Sizes
from exprune_fx.studies.subjects.graph_network import GraphNetwork
from exprune_fx.studies.subjects.metrics import RocAuc
from exprune_fx.studies.subjects.molecules import Molecules, load_hiv
from exprune_fx.studies.subjects.subject import Judge, Subject
from exprune_fx.studies.subjects.training import Say
from exprune_fx.studies.subjects.weights import read_or_train

NAME = "gcn-hiv"
BATCH, JUDGED_BATCH = 128, 256
PEAK_LR = 2e-3


def make_gcn_hiv(
    data_dir: Folder,
    weights: Folder | None,
    sizes: Sizes,
    epochs: int,
    seed: int,
    say: Say,
    cache: Path | None = None,
    width: int = 300,
) -> Subject:
    """The subject; trained first where the file of weights is not there.

    Calibration takes molecules of the train part, selection the valid part, judging the test part.

    Args:
        data_dir: holds the HIV set, see `load_hiv`.
        weights: where the weights are, or are written.
        sizes: at most so many molecules in each part.
        epochs: of training.
        seed: of training.
        say: told what is being done.
        cache: of the graphs.
        width: of the hidden layers.

    Raises:
        DataError: data or rdkit are missing, or the weights are of another network.
    """
    say("molecules")
    molecules, parts = load_hiv(data_dir, cache)
    torch.manual_seed(seed)
    model = GraphNetwork(width)
    read_or_train(model, weights, lambda: train_graphs(model, molecules, parts["train"], epochs, seed, say))
    chosen = parts["train"][torch.randperm(len(parts["train"]), generator=torch.Generator().manual_seed(seed))]
    calibration = [molecules.batch(part) for part in chosen[: sizes.calibration].split(JUDGED_BATCH)]
    selection = judge_molecules(molecules, parts["valid"][: sizes.selection])
    test = judge_molecules(molecules, parts["test"][: sizes.test])
    active = [int(torch.cat(list(judge.targets)).sum()) for judge in (selection, test)]
    return Subject(
        name=NAME,
        title="GCN, MoleculeNet HIV",
        about=f"graph network of 5 layers, width {width}, scaffold split, calibrated on "
        f"{len(chosen[: sizes.calibration]):,} train molecules, selection on {selection.examples:,} valid molecules "
        f"({active[0]} active), judged on {test.examples:,} test molecules ({active[1]} active)",
        model=model,
        args=calibration[0],
        dynamic_shapes=dynamic_shapes(),
        calibration=calibration,
        selection=selection,
        test=test,
    )


def dynamic_shapes() -> tuple[dict[int, object], ...]:
    """Of the network's inputs: nodes, edges and graphs are free."""
    nodes, edges, graphs = (Dim.AUTO,) * 3
    return tuple({0: size} for size in (nodes, edges, edges, edges, edges, nodes, nodes, graphs))


def judge_molecules(molecules: Molecules, numbers: Tensor) -> Judge:
    """These molecules in batches."""
    split = numbers.split(JUDGED_BATCH)
    return Judge(RocAuc(), [molecules.batch(part) for part in split], [molecules.labels[part] for part in split])


def train_graphs(model: GraphNetwork, molecules: Molecules, train: Tensor, epochs: int, seed: int, say: Say) -> None:
    """Trains in place by Adam on a one-cycle schedule, cross entropy of the logit; eval mode afterwards."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(train) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=PEAK_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=steps, pct_start=0.2)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        order = train[torch.randperm(len(train), generator=generator)]
        batches = [part for part in order.split(BATCH) if len(part) == BATCH]
        for part in batches:
            labels = molecules.labels[part].float().unsqueeze(1)
            loss = F.binary_cross_entropy_with_logits(model(*molecules.batch(part)), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        say(f"epoch {epoch + 1} of {epochs}: loss {total / len(batches):.4f}")
    model.eval()
