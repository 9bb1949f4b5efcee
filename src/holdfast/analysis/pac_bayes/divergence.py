"""KL(Q || P), nats, between the Gaussians of a certificate, and what a data-dependent support costs."""

import math
from collections.abc import Iterable

from holdfast.errors import HoldfastError


def scaled(dimensions: int, posterior: float, prior: float, distance: float) -> float:
    """KL(N(mu, s^2 M) || N(mu_0, s_0^2 M)) for one positive definite M.

    1/2 [d t - d - d ln t + D / s_0^2] with t = s^2 / s_0^2 and D = (mu - mu_0)^T M^-1 (mu - mu_0); with M = I the
    Gaussians are isotropic, and with s = s_0 all that is left is D / (2 s^2).

    Args:
        dimensions: d.
        posterior: s.
        prior: s_0.
        distance: D.
    """
    if posterior <= 0 or prior <= 0:
        raise HoldfastError(f"standard deviations {posterior} and {prior}", wanted="numbers above 0")
    ratio = (posterior / prior) ** 2
    return 0.5 * (dimensions * (ratio - 1 - math.log(ratio)) + distance / prior**2)


def support(tensors: Iterable[tuple[int, int]]) -> float:
    """sum_t ln C(d_t, k_t): what it costs that k_t of d_t entries were chosen on the data of the bound itself.

    The prior then has to give every choice its share: 1 over the number of them. Nothing is to pay where the entries
    were chosen without these data. The k_t must be fixed beforehand; where they are not, see `support_of_all`.
    """
    return sum(math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1) for d, k in tensors)


def support_of_all(tensors: Iterable[tuple[int, int]]) -> float:
    """ln C(d, k) + ln(d + 1), d and k summed over tensors: where the data also chose how many fall to each, and k.

    The number of choices is C(d, k) for each of the d + 1 possible k: Vandermonde's identity sums the products of
    C(d_t, k_t) over all ways to share k out. Never below `support`.
    """
    sizes = list(tensors)
    dimensions, kept = sum(d for d, _ in sizes), sum(k for _, k in sizes)
    return support([(dimensions, kept)]) + math.log(dimensions + 1)
