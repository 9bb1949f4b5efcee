"""What every curvature with one factor on each side of the shift has in common."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast import factors
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.spectrum import Spectrum
from holdfast.factors.diagonal import Diagonal as DiagonalFactor
from holdfast.factors.factor import Factor
from holdfast.factors.full import Full
from holdfast.sparse_matrix import SparseMatrix, worthwhile

FEW = 256  # entries up to which every pair of them is looked at
AT_A_TIME = 2**24  # numbers of D S formed at once in `sparse`


class TwoSided(Curvature):
    """C D = G D S with G (out, out) and S (in, in), each in a storage structure of its own.

    With D = up @ down, <D, C D> = sum((up^T G up) * (down S down^T)): D is never formed.

    Attributes:
        inputs: S.
        gradients: G.
        rows: (1,), examples that S is the mean of, or the sum of their weights: S counts so much in a merged one.
        ridge: (2,), added to the diagonals of S and G. Kept apart, so that layers go on sharing one S in memory.
    """

    linear = False  # a sum of Kronecker products is none

    def __init__(self, inputs: Factor, gradients: Factor, rows: Tensor, ridge: Tensor | None = None) -> None:
        self.inputs, self.gradients, self.rows = inputs, gradients, rows
        self.ridge = rows.new_zeros(2) if ridge is None else ridge
        self._raise_inputs, self._raise_gradients = (float(r) for r in self.ridge)

    @classmethod
    def of(cls, inputs: Tensor, gradients: Tensor) -> Self:
        """From plain matrices S (in, in) and G (out, out)."""
        return cls(Full(inputs), Full(gradients), inputs.new_ones(1))

    def apply(self, delta: Tensor) -> Tensor:
        priced = _priced(delta.T, self.gradients, self._raise_gradients)  # (G D)^T, (in, out)
        return _priced(priced.T, self.inputs, self._raise_inputs)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        priced_up = _priced(up.T, self.gradients, self._raise_gradients)  # (G up)^T, (r, out)
        priced_down = _priced(down, self.inputs, self._raise_inputs)  # down S, (r, in)
        return priced_up.T @ (priced_down @ down.T), (priced_up @ up) @ priced_down

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """(G D S)[rows, columns]: k (out + in) products instead of out in (out + in), k^2 where k is small.

        Of D S, so many columns are formed at a time that G or S is larger; where both are diagonal, none.
        """
        out, inn = self.shape
        if isinstance(self.gradients, DiagonalFactor) and isinstance(self.inputs, DiagonalFactor):
            by_out, by_in = self.gradients.entries + self._raise_gradients, self.inputs.entries + self._raise_inputs
            return by_out[rows] * by_in[columns] * values
        if len(values) <= FEW:
            by_out = _among(self.gradients, rows, self._raise_gradients)
            return (by_out * _among(self.inputs, columns, self._raise_inputs)) @ values
        if not worthwhile(values, self.shape):
            return super().sparse(values, rows, columns)
        delta, order = SparseMatrix.ordered(values, rows, columns, self.shape)
        width, priced = max(AT_A_TIME // out, 1), torch.empty_like(values)
        for start in range(0, inn, width):
            stop = min(start + width, inn)
            inside = delta.inside(start, stop)
            priced[order[inside]] = self._priced_between(delta, delta.between(start, stop), start, stop)
        return priced

    def _priced_between(self, delta: SparseMatrix, own: SparseMatrix, start: int, stop: int) -> Tensor:
        """C D at those entries `own` of D that lie in some of its columns."""
        by_in = self.inputs.times_sparse(delta, start, stop)  # D S's columns, (out, stop - start)
        if self._raise_inputs:
            by_in[own.rows, own.columns] += self._raise_inputs * own.values
        priced = self.gradients.times_at(by_in, own)
        return priced.add_(own.picked(by_in), alpha=self._raise_gradients) if self._raise_gradients else priced

    def spectrum(self) -> Spectrum:
        (inputs, turn_inputs), (gradients, turn_gradients) = self.inputs.spectrum(), self.gradients.spectrum()
        values = (gradients + self._raise_gradients)[:, None] * (inputs + self._raise_inputs)
        bases = (None if turn is None else turn.basis for turn in (turn_inputs, turn_gradients))
        return Spectrum(values, *bases)

    def damped(self, damping: float) -> Self:
        """(G + eta mean(diag G) I) and (S + eta mean(diag S) I): both factors by the same share of their trace.

        The mean eigenvalue becomes (1 + eta)^2 of what it was, the least one eta^2 of the mean or more: at one eta
        less in flat directions than a diagonal's damping, more in those that one side alone calls flat.
        """
        means = torch.stack([self.inputs.diagonal().mean(), self.gradients.diagonal().mean()])
        return type(self)(self.inputs, self.gradients, self.rows, self.ridge + damping * means.to(self.ridge))

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """S by examples, G by scored items: what one pass over all the data would have summed."""
        counts = [float(part.rows) for part in parts]
        whole = sum(counts) or 1.0  # nothing at all: gradients that are all zero
        inputs = type(parts[0].inputs).merged([p.inputs for p in parts], [count / whole for count in counts])
        gradients = type(parts[0].gradients).merged([p.gradients for p in parts], shares)
        return cls(inputs, gradients, torch.stack([p.rows for p in parts]).sum(dim=0))

    def captured(self) -> dict[str, float]:
        shares = {"inputs": self.inputs.captured(), "gradients": self.gradients.captured()}
        return {side: share for side, share in shares.items() if share is not None}

    def tensors(self) -> dict[str, Tensor]:
        return {
            **{f"inputs.{name}": tensor for name, tensor in self.inputs.tensors().items()},
            **{f"gradients.{name}": tensor for name, tensor in self.gradients.tensors().items()},
            "rows": self.rows,
            "ridge": self.ridge,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        inputs, gradients = (factors.from_tensors(_under(side, tensors)) for side in ("inputs", "gradients"))
        return cls(inputs, gradients, tensors["rows"], tensors["ridge"])

    @property
    def shape(self) -> tuple[int, int]:
        return self.gradients.width, self.inputs.width


def _under(side: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}."): t for name, t in tensors.items() if name.startswith(f"{side}.")}


def _priced(rows: Tensor, factor: Factor, ridge: float) -> Tensor:
    """Rows times a factor plus a ridge on its diagonal, (n, d) -> (n, d)."""
    product = factor.times(rows)
    return product.add_(rows, alpha=ridge) if ridge else product


def _among(factor: Factor, indices: Tensor, ridge: float) -> Tensor:
    """M[indices][:, indices] with a ridge on M's diagonal, (k, k)."""
    found = factor.among(indices)
    return found.add_(indices[:, None] == indices, alpha=ridge) if ridge else found
