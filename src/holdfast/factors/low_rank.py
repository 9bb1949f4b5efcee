"""Low-rank factor with an exact diagonal, from a sketch in one pass: d (K + 1) numbers, d x d nowhere."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from holdfast.factors.factor import Factor, accumulator_dtype
from holdfast.sparse_matrix import SparseMatrix

LARGEST = 127  # entries of the test matrix are whole numbers up to it, exact in bfloat16 too
ROUNDINGS = 8  # of a sum of squares: what may pass unnoticed


class LowRank(Factor):
    """M = U U^T + D with U (d, K) and D diagonal: a Nystrom sketch of the second moment A.

    With a fixed random Omega (d, K), Y = A Omega is summed as x (x^T Omega), 4 d K flops a row, and read as
    Y (Omega^T Y)^+ Y^T = U U^T (arXiv 1706.05736 eq. 2.4; the pseudo-inverse leaves out what is rounding, of A's
    correlations, so that a few huge coordinates hide nothing). U U^T is at most A, so that D = diag(A) - diag(U U^T)
    is not negative: M is positive semi-definite, its diagonal and trace are A's. Exact where A's rank is at most K;
    else what is left out are A's off-diagonal entries along directions that the sketch missed. Omega depends on d and
    K alone, so sums of shards and machines add up.

    The running sum is (K + 1, d): Y^T, then the diagonal.
    """

    structure = "low-rank"
    takes_option = True

    def __init__(self, root: Tensor, exact: Tensor) -> None:
        root = root.to(exact.dtype)  # it may come in bfloat16
        held = root.square().sum(dim=1)
        excess = held > exact * (1 + ROUNDINGS * torch.finfo(exact.dtype).eps)
        if excess.any():  # by rounding: such rows are shortened, which keeps M positive and its diagonal exact
            root = root * torch.where(excess, (exact / held).sqrt(), 1.0)[:, None]
            held = torch.where(excess, exact, held)
        self.root, self.exact = root, exact  # U (d, K); diag(A) (d,)
        self.rest = (exact - held).clamp_min_(0)  # diag(D)

    @classmethod
    def zero(cls, width: int, option: int, like: Tensor) -> Tensor:
        return torch.zeros(min(option, width) + 1, width, device=like.device, dtype=accumulator_dtype(like))

    @classmethod
    def accumulate(cls, total: Tensor, rows: Tensor, option: int) -> None:
        omega = draw(total.shape[1], total.shape[0] - 1, total.device, total.dtype)
        if not rows.is_floating_point():
            counts = torch.bincount(rows, minlength=total.shape[1]).to(total.dtype)
            total[:-1] += omega.T * counts
            total[-1] += counts
            return
        # Always in the precision of the sum: the roundings of a coarser product would pass for small eigenvalues.
        rows = rows.to(total.dtype)
        total[:-1].addmm_((rows @ omega).T, rows)
        total[-1] += rows.square().sum(dim=0)

    @classmethod
    def from_sum(cls, total: Tensor, scale: float, option: int) -> Self:
        noise = torch.finfo(total.dtype).eps * total.shape[1] ** 0.5
        sums = total.double() * scale
        sketch, exact = sums[:-1].T, sums[-1].to(total.dtype)
        if not sums.isfinite().all():  # for the caller to find; a decomposition would fail on it
            return cls(sketch.to(total.dtype), exact)
        omega = draw(total.shape[1], total.shape[0] - 1, sums.device, sums.dtype)
        # Of the correlations: a coordinate that is 10^6 times the others (a "massive activation") would else put all
        # other directions below the rounding of its own. D^-1 A D^-1 has the test matrix D Omega.
        size = torch.where(sums[-1] > 0, sums[-1].clamp_min(0).sqrt(), 1.0)[:, None]
        root = _nystrom(sketch / size, size * omega, noise) * size
        return cls(root.to(total.dtype), exact)

    @staticmethod
    def numbers(width: int, option: int) -> int:
        return width * (min(option, width) + 1)

    def times(self, rows: Tensor) -> Tensor:
        return torch.addmm(rows * self.rest, rows @ self.root, self.root.T)

    def times_sparse(self, sparse: SparseMatrix, start: int, stop: int) -> Tensor:
        alone = sparse.between(start, stop).dense() * self.rest[start:stop]
        return torch.addmm(alone, sparse.times(self.root), self.root[start:stop].T)

    def times_at(self, left: Tensor, at: SparseMatrix) -> Tensor:
        return at.picked_product(self.root, self.root.T @ left) + at.picked(left) * self.rest[at.rows]

    def among(self, indices: Tensor) -> Tensor:
        alone = self.rest[indices] * (indices[:, None] == indices)
        return torch.addmm(alone, self.root[indices], self.root[indices].T)

    def diagonal(self) -> Tensor:
        return self.exact

    def captured(self) -> float:
        mass = float(self.exact.sum())
        return float(self.root.square().sum()) / mass if mass else 1.0

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """The exact sum of the parts, with their roots side by side: the rank grows to the sum of theirs, or to d."""
        pairs = list(zip(parts, shares, strict=True))
        root = torch.cat([part.root * share**0.5 for part, share in pairs], dim=1)
        if root.shape[1] > root.shape[0]:  # U = L Q with Q Q^T = I, so L L^T is the same matrix
            root = torch.linalg.qr(root.T.double(), mode="r").R.T.to(root.dtype)
        return cls(root, torch.stack([part.exact * share for part, share in pairs]).sum(dim=0))

    def tensors(self) -> dict[str, Tensor]:
        return {"low-rank": self.root, "low-rank.diagonal": self.exact}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["low-rank"], tensors["low-rank.diagonal"])


@lru_cache(maxsize=8)
def draw(width: int, rank: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Omega, (d, K): whole numbers other than 0, the same on every machine and in every precision."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{width}x{rank}".encode()))
    drawn = torch.randint(-LARGEST, LARGEST, (width, rank), generator=generator)
    return torch.where(drawn < 0, drawn, drawn + 1).to(device, dtype)


def _nystrom(sketch: Tensor, omega: Tensor, noise: float) -> Tensor:
    """U with U U^T = Y (Omega^T Y)^+ Y^T for Y = A Omega, both (d, K) in float64.

    Args:
        sketch: Y.
        omega: Omega; it is orthogonalised first, which leaves the formula's value as it is.
        noise: eigenvalues of Omega^T Y below this share of the largest are taken for rounding.
    """
    basis, triangle = torch.linalg.qr(omega)
    sketch = torch.linalg.solve_triangular(triangle, sketch, upper=True, left=False)  # A Q with Omega = Q R
    small = basis.T @ sketch
    values, vectors = torch.linalg.eigh((small + small.T) / 2)
    kept = values > noise * values[-1].clamp_min(0)
    return sketch @ (vectors[:, kept] / values[kept].sqrt())
