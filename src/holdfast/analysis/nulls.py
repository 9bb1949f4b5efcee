"""How concentrated noise is: the share of a norm that the largest entries of i.i.d. draws carry.

A gradient is called sparse only against these: even entries drawn from a Gaussian have 29 % of their norm in the
largest hundredth.
"""

import math
from collections.abc import Callable

import torch

from holdfast.errors import HoldfastError


def gaussian(share: float) -> float:
    """The share of the L2 norm in the largest `share` of i.i.d. Gaussian entries, in the limit of many.

    With P(|x| > t) = q the energy above t is q + 2 t phi(t); the norm is its root.
    """
    q = _share(share)
    if q in (0.0, 1.0):
        return q
    t = -float(torch.special.ndtri(torch.tensor(q / 2, dtype=torch.float64)))
    return math.sqrt(min(1.0, q + 2 * t * math.exp(-t * t / 2) / math.sqrt(2 * math.pi)))


def laplace(share: float) -> float:
    """The same of Laplace entries: with t = -ln q the energy above t is q (t^2 + 2 t + 2) / 2."""
    q = _share(share)
    if q == 0.0:
        return 0.0
    t = -math.log(q)
    return math.sqrt(q * (t * t + 2 * t + 2) / 2)


NULLS: dict[str, Callable[[float], float]] = {"Gaussian": gaussian, "Laplace": laplace}


def smallest_share(null: Callable[[float], float], norm: float) -> float:
    """The smallest share of the entries that carries `norm` of the norm under a null, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if null(middle) >= norm else (middle, high)
    return high


def _share(share: float) -> float:
    if not 0 <= share <= 1:
        raise HoldfastError(f"a share of {share} of the entries", wanted="a number from 0 to 1")
    return float(share)
