"""Block-diagonal factor: square blocks along the diagonal, (blocks, N, N); nothing between them."""

from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from holdfast.factors.factor import Factor, accumulator_dtype
from holdfast.factors.full import Full
from holdfast.factors.rotation import Rotation, by_blocks
from holdfast.sparse_matrix import SparseMatrix


class Blocks(Factor):
    """M with zeros between blocks of at most `option` neighbouring coordinates, all of one size N.

    What is inside a block is exact, what is between blocks is left out: exact for block-diagonal data. With
    n = ceil(d / option) blocks N is ceil(d / n), so that the last one, filled up with zeros, lacks at most n - 1 rows.
    The running sum is (d, N): each coordinate with those of its block.
    """

    structure = "blocks"
    takes_option = True

    def __init__(self, blocks: Tensor, size: Tensor) -> None:
        self.blocks = blocks  # (n, N, N)
        self.size = size  # (1,): d; a tensor, since it is stored
        self._width = int(size)

    @classmethod
    def zero(cls, width: int, option: int, like: Tensor) -> Tensor:
        return torch.zeros(width, _layout(width, option)[1], device=like.device, dtype=accumulator_dtype(like))

    @classmethod
    def accumulate(cls, total: Tensor, rows: Tensor, option: int) -> None:
        size = total.shape[1]
        if not rows.is_floating_point():
            counts = torch.bincount(rows, minlength=total.shape[0]).to(total.dtype)
            total.scatter_add_(1, (torch.arange(len(total), device=total.device) % size)[:, None], counts[:, None])
            return
        for own, part in zip(total.split(size), rows.split(size, dim=1), strict=True):
            Full.accumulate(own[:, : len(own)], part, 0)

    @classmethod
    def from_sum(cls, total: Tensor, scale: float, option: int) -> Self:
        width, size = total.shape
        blocks = total.new_zeros(-(-width // size), size, size)
        for block, own in zip(blocks, total.split(size), strict=True):
            block[: len(own), : len(own)] = Full.from_sum(own[:, : len(own)], scale, 0).matrix
        return cls(blocks, total.new_full((1,), width))

    @staticmethod
    def numbers(width: int, option: int) -> int:
        count, size = _layout(width, option)
        return count * size * size

    @classmethod
    def stored(cls, width: int, option: int) -> int:
        count, size = _layout(width, option)
        return count * (size * (size + 1) // 2)

    @staticmethod
    def turning(width: int, option: int) -> int:
        return Blocks.numbers(width, option)

    def times(self, rows: Tensor) -> Tensor:
        return by_blocks(rows, self.blocks)

    def times_sparse(self, sparse: SparseMatrix, start: int, stop: int) -> Tensor:
        size = self.blocks.shape[1]
        first, last = start // size, -(-stop // size)  # the blocks that the columns are in
        inside = sparse.between(first * size, min(last * size, self._width)).dense()
        return by_blocks(inside, self.blocks[first:last])[:, start - first * size : stop - first * size]

    def diagonal(self) -> Tensor:
        return self.blocks.diagonal(dim1=1, dim2=2).reshape(-1)[: self._width]

    @cached_property
    def _rotation(self) -> Rotation:
        basis = torch.zeros_like(self.blocks)
        rest = self._width
        for own, block in zip(basis, self.blocks, strict=True):
            used = min(rest, len(block))  # what fills the last block up is left as it is
            own.diagonal().fill_(1)
            own[:used, :used] = torch.linalg.eigh(block[:used, :used]).eigenvectors
            rest -= used
        return Rotation(basis)

    def rotation(self) -> Rotation:
        return self._rotation

    def spectrum(self) -> tuple[Tensor, Rotation | None]:
        basis = self._rotation.basis
        values = (basis * (self.blocks @ basis)).sum(dim=1)  # of each block's columns: (n, N)
        return values.flatten()[: self._width].clamp_min(0), self._rotation

    @classmethod
    def merged(cls, parts: Sequence[Self], shares: Sequence[float]) -> Self:
        total = torch.zeros_like(parts[0].blocks)
        for part, share in zip(parts, shares, strict=True):
            total.add_(part.blocks, alpha=share)
        return cls(total, parts[0].size)

    def tensors(self) -> dict[str, Tensor]:
        return {"blocks": self.blocks, "blocks.size": self.size}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Self:
        return cls(tensors["blocks"], tensors["blocks.size"])


def _layout(width: int, option: int) -> tuple[int, int]:
    """How many blocks, and the size of each."""
    count = -(-width // option)
    return count, -(-width // count)
