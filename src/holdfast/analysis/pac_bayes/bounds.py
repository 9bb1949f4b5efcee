"""PAC-Bayes bounds: with probability 1 - delta over n independent examples, for every posterior Q at once.

R(Q) is the risk of a predictor drawn from Q on fresh data, r(Q) its mean loss on the n examples, and P a prior that
was fixed before them. Losses lie in [0, C]; where a formula is for [0, 1], losses are divided by C and the bound is
multiplied by it.

| bound     | R(Q) is at most                                                  | source                               |
|-----------|------------------------------------------------------------------|--------------------------------------|
| mcallester| r + sqrt((KL + ln(2 sqrt(n) / delta)) / (2 n))                   | McAllester 1999; Maurer cs/0411099   |
| linear    | r + (KL + ln(1 / delta)) / lambda + lambda C^2 / (8 n)           | Catoni; Alquier 2110.11216, thm. 2.1 |
| seeger    | the largest p with kl(r, p) <= (KL + ln(2 sqrt(n) / delta)) / n  | Seeger 2002; Maurer cs/0411099       |

Seeger's is never above McAllester's (Pinsker). The linear one needs lambda chosen before the data; here the best of a
fixed grid is taken, at the price of delta divided by the size of the grid.
"""

import math
from collections.abc import Callable

from holdfast.errors import HoldfastError

FEWEST = 8  # examples: Maurer's constant 2 sqrt(n) is proved from there on
RATES = 10  # values of lambda


def mcallester(risk: float, divergence: float, n: int, delta: float, most: float = 1.0) -> float:
    """r + C sqrt((KL + ln(2 sqrt(n) / delta)) / (2 n)); in the losses' own unit.

    Raises:
        HoldfastError: a risk outside [0, C], fewer than 8 examples, a negative divergence or a delta outside (0, 1).
    """
    return risk + most * math.sqrt(complexity(risk, divergence, n, delta, most) / 2)


def seeger(risk: float, divergence: float, n: int, delta: float, most: float = 1.0) -> float:
    """C kl^-1(r / C, (KL + ln(2 sqrt(n) / delta)) / n). Raises as `mcallester`."""
    return most * kl_inverse(risk / most, complexity(risk, divergence, n, delta, most))


def linear(risk: float, divergence: float, n: int, delta: float, most: float = 1.0) -> float:
    """The least over a grid of lambda of r + (KL + ln(k / delta)) / lambda + lambda C^2 / (8 n), k the grid's size.

    The grid is fixed by n and C alone: geometric from sqrt(8 n) / C, the best for KL + ln(1/delta) = 1, to 8 n / C.
    Raises as `mcallester`.
    """
    complexity(risk, divergence, n, delta, most)  # the same conditions
    least, greatest = math.sqrt(8 * n) / most, 8 * n / most
    rates = [least * (greatest / least) ** (i / (RATES - 1)) for i in range(RATES)]
    return min(linear_at(risk, divergence, n, delta / RATES, rate, most) for rate in rates)


def linear_at(risk: float, divergence: float, n: int, delta: float, rate: float, most: float = 1.0) -> float:
    """The linear bound at one lambda, which must have been chosen before the data."""
    return risk + (divergence + math.log(1 / delta)) / rate + rate * most**2 / (8 * n)


BOUNDS: dict[str, Callable[..., float]] = {"seeger": seeger, "mcallester": mcallester, "linear": linear}


def complexity(risk: float, divergence: float, n: int, delta: float, most: float = 1.0) -> float:
    """(KL + ln(2 sqrt(n) / delta)) / n; raises as `mcallester`."""
    if not 0 <= risk <= most * (1 + 1e-12):
        raise HoldfastError(f"a risk of {risk}", wanted=f"a mean of losses from 0 to {most}")
    if n < FEWEST:
        raise HoldfastError(
            f"{n} independent examples are too few for a bound",
            wanted=f"{FEWEST} or more; a useful bound takes a hundred",
            causes=["one long text is a single example, however many tokens it has"],
            remedy="give more documents",
        )
    if divergence < 0 or not 0 < delta < 1:
        raise HoldfastError(f"KL {divergence}, delta {delta}", wanted="a KL of at least 0 and a delta inside (0, 1)")
    return (divergence + math.log(2 * math.sqrt(n) / delta)) / n


def kl_bernoulli(q: float, p: float) -> float:
    """q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), nats."""
    first = q * math.log(q / p) if q > 0 and p > 0 else math.inf if q > 0 else 0.0
    second = (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 and p < 1 else math.inf if q < 1 else 0.0
    return first + second


def kl_inverse(q: float, c: float) -> float:
    """The largest p in [q, 1] with kl(q, p) <= c, by bisection; rounded up, so that it stays a bound."""
    q = min(max(q, 0.0), 1.0)
    if q == 1.0 or math.isinf(c):
        return 1.0
    low, high = q, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kl_bernoulli(q, middle) <= c else (low, middle)
    return high


def sampled(mean: float, draws: int, delta: float) -> float:
    """r(Q), at most, with probability 1 - delta, from `draws` independent losses in [0, 1] with that mean.

    kl^-1(mean, ln(2 / delta) / draws): Langford and Caruana 2001, "(Not) bounding the true error"; arXiv 1703.11008
    eq. 6. It takes each draw for worth one bit: few draws cost much.
    """
    return kl_inverse(mean, math.log(2 / delta) / draws)


def bernstein(mean: float, variance: float, draws: int, delta: float, spread: float) -> float:
    """An expectation, at most, with probability 1 - delta, from independent draws within an interval.

    mean + sqrt(2 V ln(2 / delta) / m) + 7 C ln(2 / delta) / (3 (m - 1)): Maurer and Pontil, arXiv 0907.3740, thm. 4,
    with the sample variance V (over m - 1) and an interval of length C. Small where the draws differ little.
    """
    if draws < 2:
        raise HoldfastError(f"{draws} draws", wanted="2 or more: their variance is needed")
    logarithm = math.log(2 / delta)
    return mean + math.sqrt(2 * variance * logarithm / draws) + 7 * spread * logarithm / (3 * (draws - 1))
