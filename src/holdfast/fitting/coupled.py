"""Per-layer shrinkage where the price has terms between layers: a small quadratic programme over the factors."""

import torch
from torch import Tensor

from holdfast.fitting.shrinkage import fitting_multiplier

ROUNDS = 100  # of the active set; a handful are usual
SWEEPS = 20_000  # of coordinate descent, where the active set goes round in circles
LEAST = 1e-12  # of the largest worth: what keeps the programme strictly convex
STILL = 1e-14  # a sweep that moves no factor further ends the descent


def coupled_layers(worths: Tensor, prices: Tensor, budget: float) -> Tensor:
    """a in [0, 1]^L, the minimum of sum n_l (1 - a_l)^2 over all a with a^T P a <= B.

    For each multiplier mu the Lagrangian is a strictly convex quadratic in the box; a^T P a at its minimum never rises
    with mu, and mu is its one root. Where P is diagonal this is `shrinkage.layers`.

    Args:
        worths: n, (L,), at least 0.
        prices: P, (L, L), nats, positive semi-definite: 1/2 q of the shifts a_l D_l is a^T P a.
        budget: B > 0, nats.
    """
    worths, prices = worths.double(), prices.double()
    worths = worths.clamp_min(LEAST * float(worths.max()) or 1.0)

    def forecast(multiplier: float) -> float:
        factors = shrunk(worths, prices, multiplier)
        return float(factors @ prices @ factors)

    trace = float(prices.diagonal().sum())
    multiplier = fitting_multiplier(forecast, budget, start=float(worths.sum()) / trace if trace > 0 else 1.0)
    return shrunk(worths, prices, multiplier)


def shrunk(worths: Tensor, prices: Tensor, multiplier: float) -> Tensor:
    """a in [0, 1]^L, the minimum of sum n_l (1 - a_l)^2 + mu a^T P a.

    (N + mu P) a = n on the factors that are free. Which are: those whose own equation, given the others, leads
    inside the box (primal-dual active set, doi 10.1137/S1052623401383558, which ends in a few rounds or circles).
    """
    form = multiplier * prices + torch.diag(worths)  # H: the gradient is 2 (H a - n)
    factors = torch.ones_like(worths)
    bounds = torch.full_like(worths, torch.nan)  # nan: free
    for _ in range(ROUNDS):
        free = bounds.isnan()
        factors = torch.where(free, 0.0, bounds)
        right = worths - form @ factors
        if free.any():
            factors[free] = torch.linalg.solve(form[free][:, free], right[free])
        best = factors - (form @ factors - worths) / form.diagonal()
        found = torch.full_like(worths, torch.nan).masked_fill(best <= 0, 0.0).masked_fill(best >= 1, 1.0)
        if torch.equal(found.nan_to_num(-1), bounds.nan_to_num(-1)):
            return factors
        bounds = found
    return _descended(form, worths, factors.clamp(0, 1))


def _descended(form: Tensor, worths: Tensor, factors: Tensor) -> Tensor:
    """The same by exact coordinate descent, which always converges."""
    for _ in range(SWEEPS):
        moved = 0.0
        for i in range(len(factors)):
            best = float(factors[i] - (form[i] @ factors - worths[i]) / form[i, i])
            best = min(max(best, 0.0), 1.0)
            moved = max(moved, abs(best - float(factors[i])))
            factors[i] = best
        if moved <= STILL:
            break
    return factors
