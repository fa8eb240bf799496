"""The principal basis of a site: in it, the first r terms are the best rank-r estimate of every pre-activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-6  # of the mean eigenvalue: keeps the factorisation defined where features are constant or dependent


@dataclass(frozen=True)
class Basis:
    """All directions of one site's input, the most useful first (float64).

    Attributes:
        down: [K, K]; its first r rows take an input to its first r coordinates.
        lift: [K, K]; its first r columns take coordinates back: ``weight @ lift[:, :r] @ down[:r]`` is the estimate.
    """

    down: Tensor
    lift: Tensor

    def truncated(self, rank: int) -> tuple[Tensor, Tensor]:
        """``down`` [rank, K] and ``lift`` [K, rank]."""
        return self.down[:rank], self.lift[:, :rank]


def principal_basis(weight: Tensor, second_moments: Tensor) -> Basis:
    """The basis in which truncation is optimal for the mean square of ``weight @ x``.

    With ``C = E[x x^T] = L L^T`` and ``W L = U S V^T`` (Eckart-Young after whitening): down = V^T L^-1, lift = L V. The
    moments are not centred: the bias knows nothing of the inputs' mean, so the estimate has to carry it.

    Args:
        weight: [out, K] or [out, K, *kernel]; kernel positions stand as further outputs.
        second_moments: [K, K], symmetric.
    """
    rows = weight.double().movedim(1, -1).flatten(0, -2)
    moments = second_moments.double()
    size = moments.shape[0]
    mean = float(moments.diagonal().mean())
    ridge = _RIDGE * mean if mean > 0 else 1.0
    root = torch.linalg.cholesky(moments + ridge * torch.eye(size, dtype=moments.dtype, device=moments.device))
    gram = root.t() @ (rows.t() @ rows) @ root
    vectors = torch.linalg.eigh((gram + gram.t()) / 2).eigenvectors.flip(1)
    largest = vectors.abs().argmax(0, keepdim=True)
    vectors = vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary
    return Basis(torch.linalg.solve_triangular(root.t(), vectors, upper=True).t().contiguous(), root @ vectors)
