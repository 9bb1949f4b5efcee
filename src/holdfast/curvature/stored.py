"""What the curvatures that keep examples instead of their second moments have in common."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.examples import Examples, padded
from holdfast.curvature.statistic import LayerSize
from holdfast.factors.factor import accumulator_dtype
from holdfast.sparse_matrix import SparseMatrix, worthwhile

PAIRS_AT_A_TIME = 2**22  # of rows, in `trace`


class Stored(Curvature):
    """C D = sum over examples n of s_n M_n with M_n = sum over t of g_nt x_nt^T and s_n = <M_n, D>.

    With D = up @ down, s_n = sum over t of (up^T g_nt) . (down x_nt): O(n t r (out + in)), and neither D nor M_n is
    formed.

    Attributes:
        inputs: x, (n, t, in), padded with zeros; or an embedding's indices, (n, t), standing for one-hot rows.
        gradients: g, (n, t, out), scaled so that sum s_n^2 is an estimate of the form per scored item.
        examples: (n,) what names each example, the same in every layer that keeps it.
        width: (1,), in.
        ridge: (1,), added to the diagonal.
    """

    keeps = True

    def __init__(
        self,
        inputs: Tensor,
        gradients: Tensor,
        examples: Tensor,
        width: Tensor | None = None,
        ridge: Tensor | None = None,
    ) -> None:
        indexed = inputs.dim() == 2
        self.inputs, self.gradients = inputs.long() if indexed else inputs, gradients
        self.examples = examples
        self.width = torch.tensor([inputs.shape[-1]]) if width is None else width
        self.ridge = gradients.new_zeros(1) if ridge is None else ridge
        self.names, self.raised = examples.tolist(), float(self.ridge)
        self._size = LayerSize(gradients.shape[2], int(self.width), indexed)

    @classmethod
    def estimated(cls, size: LayerSize, examples: Examples, items: int) -> Self:
        """From a random choice of all examples: each of them stands for rows / kept."""
        kept = examples.kept()
        dtype = accumulator_dtype(kept.gradients)
        scale = (examples.rows / (max(len(kept.priorities), 1) * items)) ** 0.5
        inputs = kept.inputs if size.indexed else kept.inputs.to(dtype)
        return cls(inputs, kept.gradients.to(dtype) * scale, kept.priorities, torch.tensor([size.inn]))

    def apply(self, delta: Tensor) -> Tensor:
        moved = delta.T[self.inputs] if self._size.indexed else self.inputs @ delta.T  # D x: (n, t, out)
        scores = (moved * self.gradients).sum(dim=(1, 2))
        return self._weighted(scores).add_(delta, alpha=self.raised)

    def thin(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        below = down.T[self.inputs] if self._size.indexed else self.inputs @ down.T  # (n, t, r)
        above = self.gradients @ up  # (n, t, r)
        scores = (below * above).sum(dim=(1, 2))[:, None, None]
        for_up = torch.einsum("nto,ntr->or", self.gradients, below * scores)
        for_down = LayerSize(up.shape[1], self._size.inn, self._size.indexed).weight_gradient(
            self.inputs.flatten(0, 1), (above * scores).flatten(0, 1)
        )
        if self.raised:
            for_up = for_up.addmm(up, down @ down.T, alpha=self.raised)
            for_down = for_down.addmm(up.T @ up, down, alpha=self.raised)
        return for_up, for_down

    def sparse(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """O(n t k); of indices, with only the columns of D that they point at."""
        if self._size.indexed:
            return self._sparse_indexed(values, rows, columns)
        if not worthwhile(values, self.shape):
            return super().sparse(values, rows, columns)
        delta, order = SparseMatrix.ordered(values, rows, columns, self.shape)
        inputs = self.inputs.flatten(0, 1)  # (n t, in)
        moved = delta.times(inputs.T)  # D x: (out, n t)
        scores = (moved.T.view_as(self.gradients) * self.gradients).sum(dim=(1, 2))
        weighted = (self.gradients * scores[:, None, None]).flatten(0, 1)  # (n t, out)
        priced = delta.picked_product(weighted.T, inputs)
        return torch.empty_like(priced).index_copy_(0, order, priced).add_(values, alpha=self.raised)

    def _sparse_indexed(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        known, places = self.inputs.unique(return_inverse=True)  # (m,); (n, t)
        at = torch.searchsorted(known, columns).clamp_max(max(len(known) - 1, 0))
        met = (known[at] == columns) if len(known) else torch.zeros_like(columns, dtype=torch.bool)
        delta = values.new_zeros(len(known), self._size.out)  # D^T's rows that indices point at
        delta[at[met], rows[met]] = values[met]
        scores = (delta[places] * self.gradients).sum(dim=(1, 2))
        weighted = (self.gradients * scores[:, None, None]).flatten(0, 1)
        summed = torch.zeros_like(delta).index_add_(0, places.flatten(), weighted)  # (m, out)
        priced = self.raised * values
        priced[met] += summed[at[met], rows[met]]
        return priced

    def _weighted(self, scores: Tensor) -> Tensor:
        """sum s_n M_n, (n,) -> (out, in)."""
        gradients = self.gradients * scores[:, None, None]
        return self._size.weight_gradient(self.inputs.flatten(0, 1), gradients.flatten(0, 1))

    def damped(self, damping: float) -> Self:
        """With damping * trace / (out * in) on the diagonal."""
        if not damping:
            return self
        ridge = self.ridge + damping * self.trace() / (self._size.out * self._size.inn)
        return type(self)(self.inputs, self.gradients, self.examples, self.width, ridge)

    def trace(self) -> Tensor:
        """sum over examples of |M_n|^2, 0-d; |M_n|^2 = sum over t, u of (g_nt . g_nu) (x_nt . x_nu)."""
        total = self.gradients.new_zeros(())
        some = max(PAIRS_AT_A_TIME // self.gradients.shape[1] ** 2, 1)
        for x, g in zip(self.inputs.split(some), self.gradients.split(some), strict=True):
            alike = (x[:, :, None] == x[:, None]).to(g.dtype) if self._size.indexed else x @ x.mT
            total += (alike * (g @ g.mT)).sum()
        return total

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        """All parts' examples: exact, and as large as they are together."""
        longest = max(part.gradients.shape[1] for part in parts)
        scaled = [share**0.5 * part.gradients for part, share in zip(parts, shares, strict=True)]
        ridges = [share * part.ridge for part, share in zip(parts, shares, strict=True)]
        return cls(
            torch.cat([padded(part.inputs, longest) for part in parts]),
            torch.cat([padded(gradients, longest) for gradients in scaled]),
            torch.cat([part.examples for part in parts]),
            parts[0].width,
            torch.stack(ridges).sum(dim=0),
        )

    def tensors(self) -> dict[str, Tensor]:
        names = ("inputs", "gradients", "examples", "width", "ridge")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(**tensors)

    @property
    def shape(self) -> tuple[int, int]:
        return self._size.out, self._size.inn
