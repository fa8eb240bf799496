"""Molecules as graphs: MoleculeNet's HIV set by its scaffold split, with OGB's nine atom and three bond features.

The features are those that OGB publishes for its molecules (Hu et al., arXiv 2005.00687): of an atom its number,
chirality, degree, charge, hydrogens, radical electrons, hybridisation, aromaticity and ring membership; of a bond its
type, stereo configuration and conjugation. A value that is not in a feature's list takes the list's last place.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exprune_fx.errors import DataError
from exprune_fx.extras import optional_module

OTHER = "other"
CHIRALITY = ("CHI_UNSPECIFIED", "CHI_TETRAHEDRAL_CW", "CHI_TETRAHEDRAL_CCW", "CHI_OTHER", OTHER)
HYBRIDISATION = ("SP", "SP2", "SP3", "SP3D", "SP3D2", OTHER)
BOND_TYPE = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC", OTHER)
STEREO = ("STEREONONE", "STEREOZ", "STEREOE", "STEREOCIS", "STEREOTRANS", "STEREOANY")
ATOM_SIZES = (119, len(CHIRALITY), 12, 12, 10, 6, len(HYBRIDISATION), 2, 2)
BOND_SIZES = (len(BOND_TYPE), len(STEREO), 2)
"""How many values each feature has."""

Folder = str | os.PathLike[str]
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, eq=False)
class Molecules:
    """Many molecules, one after another.

    Attributes:
        atoms: int64, [all atoms, 9].
        ends: int64, [2, all bonds], atoms within their own molecule; every bond stands in both directions.
        bonds: int64, [all bonds, 3].
        atom_starts: int64, [molecules + 1].
        bond_starts: int64, [molecules + 1].
        labels: int64, [molecules], 1 for active.
    """

    atoms: Tensor
    ends: Tensor
    bonds: Tensor
    atom_starts: Tensor
    bond_starts: Tensor
    labels: Tensor

    def batch(self, chosen: Sequence[int] | Tensor) -> tuple[Tensor, ...]:
        """Some molecules as one graph: the inputs of `GraphNetwork`.

        Args:
            chosen: their numbers.
        """
        numbers = torch.as_tensor(chosen)
        atoms = _ranges(self.atom_starts[numbers], self.atom_starts[numbers + 1])
        bonds = _ranges(self.bond_starts[numbers], self.bond_starts[numbers + 1])
        sizes = self.atom_starts[numbers + 1] - self.atom_starts[numbers]
        bond_counts = self.bond_starts[numbers + 1] - self.bond_starts[numbers]
        ends = self.ends[:, bonds] + (sizes.cumsum(0) - sizes).repeat_interleave(bond_counts)
        degree = torch.bincount(ends[0], minlength=len(atoms)).float() + 1
        scale = degree.rsqrt()
        graph = torch.arange(len(numbers)).repeat_interleave(sizes)
        norm = scale[ends[0]] * scale[ends[1]]
        return self.atoms[atoms], ends[0], ends[1], self.bonds[bonds], norm, 1 / degree, graph, sizes.float()


def _ranges(starts: Tensor, stops: Tensor) -> Tensor:
    return torch.cat([torch.arange(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)])


def load_hiv(folder: Folder, cache: Path | None = None) -> tuple[Molecules, dict[str, Tensor]]:
    """The HIV set, and the numbers of the molecules of its train, valid and test part.

    Args:
        folder: holds HIV.csv and scaffold_split.npz, itself or in its subfolder moleculenet-hiv.
        cache: a .npz file for the graphs; written if it is not there (reading the SMILES takes a minute or two).

    Raises:
        DataError: a file or rdkit is missing, or a SMILES cannot be read.
    """
    home = next(
        (path for path in (Path(folder), Path(folder) / "moleculenet-hiv") if (path / "HIV.csv").is_file()), None
    )
    if home is None:
        raise DataError(f"HIV.csv is neither in {folder} nor in its subfolder moleculenet-hiv", hint="give --data-dir")
    with np.load(home / "scaffold_split.npz", allow_pickle=False) as split:
        parts = {name: torch.from_numpy(split[name]) for name in ("train", "valid", "test")}
    if cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as arrays:
            return _molecules(dict(arrays)), parts
    with (home / "HIV.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["smiles"], int(row["HIV_active"])) for row in csv.DictReader(file)]
    arrays = graphs_of([smiles for smiles, _ in rows])
    arrays["labels"] = np.array([label for _, label in rows])
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, allow_pickle=False, **arrays)
    return _molecules(arrays), parts


def _molecules(arrays: Arrays) -> Molecules:
    return Molecules(**{name: torch.from_numpy(value.astype(np.int64)) for name, value in arrays.items()})


def graphs_of(smiles: Sequence[str]) -> Arrays:
    """Features and bonds of these molecules, as `Molecules` holds them, labels apart.

    Raises:
        DataError: rdkit is not installed, or cannot read one of them.
    """
    chem, log = _rdkit()
    blocked = log.BlockLogs()
    atoms: list[list[int]] = []
    ends: list[tuple[int, int]] = []
    bonds: list[list[int]] = []
    atom_starts, bond_starts = [0], [0]
    for text in smiles:
        molecule = _read(chem, text)
        atoms += [_atom_features(atom) for atom in molecule.GetAtoms()]
        for bond in molecule.GetBonds():
            pair, features = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()), _bond_features(bond)
            ends += [pair, pair[::-1]]
            bonds += [features, features]
        atom_starts.append(len(atoms))
        bond_starts.append(len(bonds))
    del blocked
    return {
        "atoms": np.array(atoms, np.uint8),
        "ends": np.array(ends, np.int16).reshape(-1, 2).T.copy(),
        "bonds": np.array(bonds, np.uint8).reshape(-1, len(BOND_SIZES)),
        "atom_starts": np.array(atom_starts),
        "bond_starts": np.array(bond_starts),
    }


def _rdkit() -> tuple[Any, Any]:
    needed, install = "molecules are read by rdkit", "'exprune_fx[studies]'"
    return optional_module("rdkit.Chem", needed, install), optional_module("rdkit.rdBase", needed, install)


def _read(chem: Any, smiles: str) -> Any:
    """A molecule; where only its valences are refused, it is read without that check."""
    molecule = chem.MolFromSmiles(smiles) or chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        raise DataError(f"rdkit cannot read the SMILES {smiles!r}", hint="check the file")
    if molecule.NeedsUpdatePropertyCache():
        molecule.UpdatePropertyCache(strict=False)
        flags = chem.SanitizeFlags
        try:
            chem.SanitizeMol(molecule, flags.SANITIZE_ALL ^ flags.SANITIZE_PROPERTIES)
        except ValueError as error:  # of which rdkit's own errors are
            raise DataError(f"rdkit cannot read the SMILES {smiles!r}: {error}", hint="check the file") from error
    return molecule


def _place(values: Sequence[Any], value: Any) -> int:
    """Where a value stands in its list; else the last place."""
    return values.index(value) if value in values else len(values) - 1


def _count(value: int, size: int, lowest: int = 0) -> int:
    """The place of a number in lowest, lowest + 1, ...; the last of ``size`` places for what lies outside."""
    place = value - lowest
    return place if 0 <= place < size - 1 else size - 1


def _atom_features(atom: Any) -> list[int]:
    return [
        _count(atom.GetAtomicNum(), ATOM_SIZES[0], 1),
        _place(CHIRALITY, str(atom.GetChiralTag())),
        _count(atom.GetTotalDegree(), ATOM_SIZES[2]),
        _count(atom.GetFormalCharge(), ATOM_SIZES[3], -5),
        _count(atom.GetTotalNumHs(), ATOM_SIZES[4]),
        _count(atom.GetNumRadicalElectrons(), ATOM_SIZES[5]),
        _place(HYBRIDISATION, str(atom.GetHybridization())),
        int(atom.GetIsAromatic()),
        int(atom.IsInRing()),
    ]


def _bond_features(bond: Any) -> list[int]:
    return [
        _place(BOND_TYPE, str(bond.GetBondType())),
        _place(STEREO, str(bond.GetStereo())),
        int(bond.GetIsConjugated()),
    ]
