"""Molecules as graphs, and the network on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import exprune_fx as ex
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.gcn_hiv import dynamic_shapes, make_gcn_hiv
from exprune_fx.studies.subjects.graph_network import GraphNetwork
from exprune_fx.studies.subjects.molecules import Molecules, graphs_of, load_hiv

pytest.importorskip("rdkit")

SMILES = ("CCO", "c1ccccc1", "C", "[O-][N+](=O)c1ccc(F)cc1", "CC(=O)[O-].[Na+]")


def molecules(smiles: tuple[str, ...] = SMILES) -> Molecules:
    arrays = graphs_of(smiles)
    values = {name: torch.from_numpy(value.astype(np.int64)) for name, value in arrays.items()}
    return Molecules(**values, labels=torch.arange(len(smiles)) % 2)


def test_features_are_the_published_ones() -> None:
    found = molecules()
    # Ethanol's first carbon: number 6 (place 5), no chirality, degree 4 with hydrogens, no charge (place 5 of -5, ...),
    # 3 hydrogens, no radical, SP3 (place 2), not aromatic, in no ring.
    assert found.atoms[0].tolist() == [5, 0, 4, 5, 3, 0, 2, 0, 0]
    assert found.atoms[3].tolist() == [5, 0, 3, 5, 1, 0, 1, 1, 1]  # benzene's: SP2, aromatic, in a ring
    assert found.bonds[:4].tolist() == [[0, 0, 0]] * 4
    assert found.bonds[4].tolist() == [3, 0, 1]  # aromatic, conjugated
    assert found.ends[:, :4].tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert found.atom_starts.tolist() == [0, 3, 9, 10, 20, 25]
    assert found.atoms[9].tolist() == [5, 0, 4, 5, 4, 0, 2, 0, 0]  # methane has no bond


def test_a_valence_that_rdkit_refuses_is_read_all_the_same() -> None:
    arrays = graphs_of(["CN(C)(C)(C)C"])
    assert len(arrays["atoms"]) == 6
    with pytest.raises(DataError, match="cannot read"):
        graphs_of(["no molecule"])
    with pytest.raises(DataError, match="cannot read"):
        graphs_of(["C("])


def test_a_batch_is_its_molecules() -> None:
    found = molecules()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GraphNetwork(width=12, layers=3).double().eval()

    def logits(numbers: list[int]) -> torch.Tensor:
        batch = [value.double() if value.is_floating_point() else value for value in found.batch(numbers)]
        with torch.no_grad():
            result: torch.Tensor = model(*batch)
        return result

    together = logits([3, 0, 2, 4, 1])
    alone = torch.cat([logits([number]) for number in (3, 0, 2, 4, 1)])
    # Sums of floats in another order; degrees are float32 in both.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_every_convolution_is_a_site() -> None:
    found = molecules()
    model = GraphNetwork(width=12, layers=3).eval()
    gm = ex.capture(model, found.batch([0, 1, 2, 3, 4]), dynamic_shapes=dynamic_shapes())
    assert [(site.name, site.exchangeable, site.terms) for site in ex.find_sites(gm)] == [
        (f"convolutions.{layer}.linear", True, 12) for layer in range(3)
    ]


def test_subject_trains_keeps_its_weights_and_reads_its_graphs_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{'C' * (1 + number % 7)}{'ON'[number % 2]},CI,{number % 2}" for number in range(150)]
    (tmp_path / "HIV.csv").write_text("\n".join(["smiles,activity,HIV_active", *rows]) + "\n")
    parts = np.arange(150)
    np.savez(tmp_path / "scaffold_split.npz", train=parts[:130], valid=parts[130:140], test=parts[140:])
    said: list[str] = []
    from exprune_fx.studies.subjects.cifar import Sizes

    def make() -> object:
        cache, weights = tmp_path / "study" / "graphs.npz", tmp_path / "gcn.pt"
        return make_gcn_hiv(tmp_path, weights, Sizes(20, 10, 10), 2, 0, said.append, cache, width=8)

    first = make()
    assert [text for text in said if text.startswith("epoch")] != []
    said.clear()
    monkeypatch.setattr("exprune_fx.studies.subjects.molecules.graphs_of", lambda _: pytest.fail("read again"))
    second = make()
    assert said == ["molecules"]
    batch = second.test.batches[0]  # type: ignore[attr-defined]  # a Subject
    assert torch.equal(first.model(*batch), second.model(*batch))  # type: ignore[attr-defined]
    assert first.test.examples == 10  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="HIV"):
        load_hiv(tmp_path / "nowhere")
