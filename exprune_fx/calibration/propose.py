"""Makes the candidates of each site: prefix heads, principal ones in the basis that the data give, coded ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from exprune_fx.calibration.basis import principal_basis
from exprune_fx.calibration.candidates import Candidate
from exprune_fx.calibration.moments import MomentObserver
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.request import Request
from exprune_fx.graph.edits import tensor_at
from exprune_fx.sites import Site


def make_candidates(data: Data, gm: fx.GraphModule, sites: Sequence[Site], request: Request) -> list[Candidate]:
    """What is worth trying: everything that would be cheaper than dense if every neuron stopped at once."""
    principal = [site for site in sites if request.wants_principal and not request.no_principal(site)]
    moments = MomentObserver()
    if principal:
        data.walk(gm, principal, moments, "moments")
    with_basis = {site.name for site in principal}
    candidates: list[Candidate] = []
    for site in sites:
        weight = tensor_at(gm, site.weight).detach()
        may_be_coded = request.wants_coded and not request.no_coded(site)
        if request.wants_prefix or not (may_be_coded or site.name in with_basis):
            lists = request.prefix_variants(site)
            candidates += [Candidate(site, "prefix", stages, request.guard, weight) for stages in lists]
        if site.name in with_basis:
            candidates += _principal_candidates(site, weight, moments.moments.pop(site.name).matrix(), request)
        if may_be_coded:
            candidates.append(Candidate(site, "coded", (site.terms,), request.guard, weight))
    return candidates


def _principal_candidates(site: Site, weight: Tensor, moments: Tensor, request: Request) -> list[Candidate]:
    basis = principal_basis(weight, moments)
    candidates = []
    for rank in request.ranks(site):
        # Rounded as the plan will hold them, so that thresholds are those of the head that will run.
        down, lift = (factor.float().to(weight.dtype) for factor in basis.truncated(rank))
        candidates.append(Candidate(site, "principal", (rank,), request.guard, weight, down, lift))
    return candidates
