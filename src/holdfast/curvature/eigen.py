"""Eigenvalue-corrected Kronecker curvature (EKFAC): Kronecker's directions, each at its measured price."""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.diagonal import Diagonal, SquaredProducts
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.spectrum import Spectrum
from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.factors.amount import Amount
from holdfast.factors.rotation import Rotation, turned, turned_back
from holdfast.sparse_matrix import SparseMatrix, worthwhile


class RotatedSquares(SquaredProducts):
    """Sum over rows of (U_G^T g)^2 (U_S^T x)^2^T: (out, in), in the eigenbases of the layer's Kronecker factors."""

    def add(self, *rows: Tensor, origin: "object | None" = None) -> None:
        inputs, gradients = rows
        turn_inputs, turn_gradients = self.rotations()
        if turn_inputs is not None:
            inputs = turn_inputs.of(self._cast(inputs))
        if turn_gradients is not None:
            gradients = turn_gradients.of(self._cast(gradients))
        super().add(inputs, gradients, origin=origin)  # type: ignore[arg-type]

    def rotations(self) -> tuple[Rotation | None, Rotation | None]:
        """Into the eigenbases of S and of G; None leaves the rows as they are."""
        assert isinstance(self.first, Kronecker)
        return self.first.inputs.rotation(), self.first.gradients.rotation()


class Eigen(Curvature):
    """C D = U_G (L * (U_G^T D U_S)) U_S^T with L_ij = 1/items * sum over rows (U_G^T g)_i^2 (U_S^T x)_j^2.

    EKFAC (arXiv 1806.03884 eq. 9-10). U_G and U_S are the eigenvectors of Kronecker's G and S, from a first pass; L
    is measured in a second one with the same drawn labels. L is the Fisher's own diagonal in that basis, where
    Kronecker has the outer product of its eigenvalues: the best positive diagonal in Frobenius norm, so never further
    from the Fisher of the layer than Kronecker. Exact where gradients and inputs are independent (it is then
    Kronecker) and where the Fisher is diagonal in the basis. Sides stored in blocks turn within them; a side without
    eigenvectors (an embedding's inputs, diagonal and low-rank factors) is left as it is.

    Per sequence, L_ij = 1/items * sum over sequences (sum over t of (U_G^T g_t)_i (U_S^T x_t)_j)^2, the diagonal of
    the Fisher of whole sequences; U_G and U_S are of rows all the same, since means and sums over sequences, of which
    there are fewer than directions, would leave most of a basis to rounding.
    """

    kind = "eigen"
    paper = "EKFAC, arXiv 1806.03884; Bayesian PEFT, arXiv 2402.12220"
    after = Kronecker
    ladder = ("full", "blocks:2048", "blocks:512", "blocks:128", "diagonal")  # a low rank has no basis to turn to

    def __init__(self, moments: Tensor, inputs: Tensor | None, gradients: Tensor | None) -> None:
        self.moments = moments  # L: (out, in)
        # U_S (in, in) and U_G (out, out), or their blocks (`holdfast.factors.rotation`); None leaves a side as it is.
        self.inputs, self.gradients = inputs, gradients

    @classmethod
    def statistics(cls) -> dict[str, type[Statistic]]:
        return {"squares": RotatedSquares}

    @classmethod
    def from_sums(cls, size: LayerSize, sums: Mapping[str, Statistic], items: int) -> Self:
        squares = sums["squares"]
        assert isinstance(squares, RotatedSquares)
        inputs, gradients = (None if turn is None else turn.basis for turn in squares.rotations())
        return cls(squares.result() / items, inputs, gradients)

    @classmethod
    def numbers(cls, size: LayerSize, reading: Reading, following: LayerSize | None = None) -> dict[str, Amount]:
        turning = {"inputs": size.inputs.turning(size.inn), "gradients": size.gradients.turning(size.out)}
        bases = {
            side: Amount(
                max(factor.measured, factor.used + turning[side]), turning[side], turning[side], factor.shared
            )
            for side, factor in Kronecker.numbers(size, reading).items()  # there while the moments are measured
        }
        return super().numbers(size, reading) | bases

    def apply(self, delta: Tensor) -> Tensor:
        turned = _turn(_turn(delta, self.inputs).T, self.gradients).T  # U_G^T D U_S
        priced = self.moments * turned
        return _turn_back(_turn_back(priced, self.inputs).T, self.gradients).T

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        turned_up, turned_down = _turn(up.T, self.gradients).T, _turn(down, self.inputs)
        for_up, for_down = Diagonal(self.moments).thin(turned_up, turned_down)
        return _turn_back(for_up.T, self.gradients).T, _turn_back(for_down, self.inputs)

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Products by a U_S that is stored whole take k of in numbers; the two by U_G are those of a dense D."""
        basis = self.inputs
        if basis is None or basis.dim() > 2 or not worthwhile(values, self.shape):
            return super().sparse(values, rows, columns)
        basis = basis.to(values)
        delta, order = SparseMatrix.ordered(values, rows, columns, self.shape)
        turned = self.moments * _turn(delta.times(basis).T, self.gradients).T
        priced = delta.picked_product(_turn_back(turned.T, self.gradients).T, basis.T)
        return torch.empty_like(priced).index_copy_(0, order, priced)

    def spectrum(self) -> Spectrum:
        return Spectrum(self.moments, self.inputs, self.gradients)

    def damped(self, damping: float) -> "Eigen":
        if not damping:
            return self
        return Eigen(self.moments + damping * self.moments.mean(), self.inputs, self.gradients)

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        raise HoldfastError(
            "eigen curvatures of different data have different eigenvectors, and do not add up to one",
            remedy="give the penalty both anchors (the exact sum), merge Kronecker anchors, or estimate on both",
        )

    def tensors(self) -> dict[str, Tensor]:
        bases = {"inputs": self.inputs, "gradients": self.gradients}
        return {"moments": self.moments} | {side: basis for side, basis in bases.items() if basis is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["moments"], tensors.get("inputs"), tensors.get("gradients"))

    @property
    def shape(self) -> tuple[int, int]:
        out, inn = self.moments.shape
        return out, inn


def _turn(rows: Tensor, basis: Tensor | None) -> Tensor:
    """rows @ basis, (n, d) -> (n, d): into the basis."""
    return rows if basis is None else turned(rows, basis)


def _turn_back(rows: Tensor, basis: Tensor | None) -> Tensor:
    """rows @ basis^T, (n, d) -> (n, d): out of the basis."""
    return rows if basis is None else turned_back(rows, basis)
