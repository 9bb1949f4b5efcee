"""How much of a tensor's norm its largest entries carry, from a histogram of log2|g| and a few moments."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from holdfast.errors import HoldfastError

PER_OCTAVE = 16  # bins for each doubling: within one, energies differ by 2^(1/8), 9 %
LOWEST, HIGHEST = -160, 160  # powers of two; float32 reaches from -149 to 128
BINS = PER_OCTAVE * (HIGHEST - LOWEST)
CHUNK = 2**20  # entries turned to float64 at a time
NORM = 0.99  # of the claim: 1 % of the entries carry 99 % of the norm
SHARE = 0.01


@dataclass(frozen=True)
class Interval:
    """What a histogram says of a figure of the entries themselves: it lies between the two, ends included."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Halfway."""
        return (self.low + self.high) / 2


class Concentration:
    """The entries of a tensor, or of several, as counts and energies of bins of |g|.

    Counts, sums of |g| and of g^2 are kept for each of 5120 bins, 16 for each doubling of |g|; zeros apart. The
    energy of the k largest entries is exact where k ends between two bins. Inside a bin [lo, hi) of n entries with
    the energy e, the m largest hold at least m e / n, and at most the lesser of m hi^2 and e - (n - m) lo^2: what is
    reported is that interval. Objects add up: `a + b` is of both tensors' entries together.
    """

    def __init__(self, counts: Tensor, sums: Tensor, squares: Tensor, moments: Tensor, zeros: int) -> None:
        self.counts, self.sums, self.squares = counts, sums, squares  # (BINS,) int64, float64, float64
        self.moments = moments  # (4,) float64: sums of g, g^2, g^3, g^4
        self.zeros = zeros

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """Of a tensor's entries; no more than 2^20 of them are copied at a time.

        Raises:
            HoldfastError: entries that are not finite.
        """
        flat, device = tensor.detach().reshape(-1), tensor.device
        counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        sums, squares = (torch.zeros(BINS, dtype=torch.float64, device=device) for _ in range(2))
        moments, zeros = torch.zeros(4, dtype=torch.float64, device=device), 0
        for part in flat.split(CHUNK):
            values = part.double()
            moments += torch.stack([values.pow(power).sum() for power in (1, 2, 3, 4)])
            sizes = values[values != 0].abs()
            zeros += len(values) - len(sizes)
            if not bool(torch.isfinite(moments[1])):
                raise HoldfastError(
                    "a gradient is not finite",
                    causes=["float16 overflows", "the model's weights hold NaN"],
                    remedy="load the model in float32, or look at its weights",
                )
            bins = ((sizes.log2() - LOWEST) * PER_OCTAVE).floor().long().clamp_(0, BINS - 1)
            counts += torch.bincount(bins, minlength=BINS)
            sums += torch.bincount(bins, sizes, minlength=BINS)
            squares += torch.bincount(bins, sizes.square(), minlength=BINS)
        return cls(counts.cpu(), sums.cpu(), squares.cpu(), moments.cpu(), zeros)

    def __add__(self, other: "Concentration") -> "Concentration":
        return Concentration(
            self.counts + other.counts,
            self.sums + other.sums,
            self.squares + other.squares,
            self.moments + other.moments,
            self.zeros + other.zeros,
        )

    @property
    def entries(self) -> int:
        """How many, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def total(self) -> float:
        """The energy, sum of g^2."""
        return float(self.squares.sum())

    def energy(self, share: float) -> Interval:
        """The share of sum g^2 in the largest `share` of the entries, rounded up to a whole entry."""
        if self.total == 0:
            return Interval(0.0, 0.0)
        number, above, before, energy = self._at(math.ceil(share * self.entries - 1e-9))
        if number is None:
            return Interval(1.0, 1.0)
        count, inside, (low, high) = int(self.counts[number]), float(self.squares[number]), _edges(number)
        m = math.ceil(share * self.entries - 1e-9) - before
        least = m * inside / count
        most = max(least, min(m * high**2, inside - (count - m) * low**2))
        return Interval((above + least) / energy, min(1.0, (above + most) / energy))

    def norm(self, share: float) -> Interval:
        """The share of the L2 norm in the largest `share` of the entries: the root of `energy`."""
        energy = self.energy(share)
        return Interval(math.sqrt(energy.low), math.sqrt(energy.high))

    def smallest_share(self, norm: float = NORM) -> Interval:
        """The smallest share of the entries that carries `norm` of the L2 norm (q99 for 0.99)."""
        if self.total == 0:
            return Interval(math.nan, math.nan)
        energies, counts = self.squares.flip(0).cumsum(0), self.counts.flip(0).cumsum(0)
        wanted = norm**2 * float(energies[-1])
        first = int(torch.searchsorted(energies, wanted))
        number = BINS - 1 - first
        count, inside, (low, high) = int(self.counts[number]), float(self.squares[number]), _edges(number)
        before, needed = int(counts[first]) - count, wanted - (float(energies[first]) - inside)
        most = math.ceil(needed * count / inside - 1e-9)
        least = math.ceil(max(needed / high**2, count - (inside - needed) / low**2, 1) - 1e-9)
        return Interval((before + min(least, most)) / self.entries, (before + most) / self.entries)

    @property
    def gini(self) -> float:
        """1 - 2 times the area under the Lorenz curve of |g|; entries of one bin count as equal (low by < 0.02)."""
        total = float(self.sums.sum())
        if total == 0:
            return math.nan
        lorenz = torch.cat([torch.zeros(1, dtype=torch.float64), self.sums.cumsum(0) / total])
        return 1 - float(((lorenz[1:] + lorenz[:-1]) * self.counts).sum()) / self.entries

    @property
    def hoyer(self) -> float:
        """(sqrt(n) - |g|_1 / |g|_2) / (sqrt(n) - 1): 0 where all entries are alike, 1 where all but one are zero."""
        if self.total == 0 or self.entries < 2:
            return math.nan
        root = math.sqrt(self.entries)
        return (root - float(self.sums.sum()) / math.sqrt(self.total)) / (root - 1)

    @property
    def participation(self) -> float:
        """(sum g^2)^2 / (n sum g^4): the share of entries that would carry the energy, were all others zero."""
        fourth = float(self.moments[3])
        return self.total**2 / (self.entries * fourth) if fourth else math.nan

    @property
    def kurtosis(self) -> float:
        """E (g - mean)^4 / Var^2: 3 for a Gaussian, 6 for a Laplace."""
        first, second, third, fourth = (float(m) / self.entries for m in self.moments)
        variance = second - first**2
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return central / variance**2 if variance > 0 else math.nan

    def histogram(self) -> tuple[list[float], list[float]]:
        """log10|g| at the lower edge of each octave that holds entries, and the share of the entries in it."""
        octaves = self.counts.reshape(-1, PER_OCTAVE).sum(1)
        held = octaves.nonzero().flatten().tolist()
        return [(LOWEST + o) * math.log10(2) for o in held], [int(octaves[o]) / self.entries for o in held]

    def _at(self, number: int) -> tuple[int | None, float, int, float]:
        """Of the bin in which the `number` largest end: its index, energy and count above it, and all energy."""
        counts, energies = self.counts.flip(0).cumsum(0), self.squares.flip(0).cumsum(0)
        total = float(energies[-1])
        if number >= int(counts[-1]):
            return None, total, int(counts[-1]), total
        first = int(torch.searchsorted(counts, max(number, 1)))
        index = BINS - 1 - first
        above = float(energies[first]) - float(self.squares[index])
        return index, above, int(counts[first]) - int(self.counts[index]), total


def _edges(number: int) -> tuple[float, float]:
    return 2.0 ** (LOWEST + number / PER_OCTAVE), 2.0 ** (LOWEST + (number + 1) / PER_OCTAVE)
