"""Tensors as they lie in a file: symmetric matrices as triangles, and bfloat16 that keeps them positive."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from holdfast.errors import HoldfastError

FLOATS = (torch.float64, torch.float32)
SQUARE = ("full", "blocks")  # last part of the names of tensors of symmetric matrices, (..., d, d)
EXACT_BELOW = 16  # tensors of fewer numbers, counts and scales among them, are never rounded; nor are vectors
STRIP = 512  # rows worked on at once
SHRINK = (2**-20, 2**-17, 2**-14, 2**-11)  # of what is off the diagonal, until Cholesky's method goes through

# Form -> how the names of its pieces end: a square is packed; a number is rounded; a root comes with the diagonal.
ENDINGS = {"plain": ("",), "rounded": ("",), "triangle": ("",), "cholesky": (".diagonal", ".cholesky")}


@dataclass(frozen=True)
class Piece:
    """One tensor of a file: what it will be, and how it is made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]


def form_of(name: str, tensor: Tensor, dtype: torch.dtype | None) -> str:
    """How a tensor of that name is stored: "plain", "triangle", "rounded" or "cholesky".

    Args:
        name: as `Curvature.tensors` has it.
        tensor: itself.
        dtype: of the storage; None: as it is.
    """
    square = name.rpartition(".")[2] in SQUARE and tensor.shape[-1] > 1
    if tensor.dtype not in FLOATS or (tensor.numel() < EXACT_BELOW and not square):
        return "plain"
    if dtype is torch.bfloat16:
        return "cholesky" if square else "rounded" if tensor.dim() > 1 else "plain"
    return "triangle" if square else "plain"


def pieces(form: str, tensor: Tensor, dtype: torch.dtype | None) -> dict[str, Piece]:
    """Ending of the name -> what is written for a tensor in that form; the inverse is `unpacked`."""
    shape = tuple(tensor.shape)
    kept = torch.float32 if dtype is torch.float32 and tensor.dtype in FLOATS else tensor.dtype
    if form == "plain":
        kept = tensor.dtype if tensor.numel() < EXACT_BELOW else kept
        return {"": Piece(kept, shape, lambda: tensor.to(kept))}
    if form == "rounded":
        return {"": Piece(torch.bfloat16, shape, lambda: tensor.to(torch.bfloat16))}
    triangle = (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)
    if form == "triangle":
        return {"": Piece(kept, triangle, lambda: pack(tensor).to(kept))}
    return {
        ".diagonal": Piece(torch.float32, shape[:-1], lambda: tensor.diagonal(dim1=-2, dim2=-1).float()),
        ".cholesky": Piece(torch.bfloat16, triangle, lambda: pack_root(tensor)),
    }


def unpacked(form: str, stored: dict[str, Tensor]) -> Tensor:
    """The tensor from its pieces; what was rounded to bfloat16 comes back as float32.

    Raises:
        ValueError: pieces of sizes that don't go together.
    """
    if form == "cholesky":
        return unpack_root(stored[".cholesky"], stored[".diagonal"])
    return {"plain": _same, "rounded": Tensor.float, "triangle": unpack}[form](stored[""])


def _same(tensor: Tensor) -> Tensor:
    return tensor


def pack(square: Tensor) -> Tensor:
    """The lower triangle row by row, (..., d, d) -> (..., d (d + 1) / 2)."""
    wide = square.shape[-1]
    packed = square.new_empty(*square.shape[:-2], wide * (wide + 1) // 2)
    _copy_rows(packed, square, into_square=False)
    return packed


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: both triangles, (..., d (d + 1) / 2) -> (..., d, d)."""
    return _mirrored(lower(packed))


def _mirrored(square: Tensor) -> Tensor:
    """What is below the diagonal above it too, in place: by strips, so without a second matrix or d^2 indices."""
    for start in range(0, square.shape[-1], STRIP):
        stop = start + STRIP
        corner = square[..., start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).mT)
        square[..., :start, start:stop] = square[..., start:stop, :start].mT
    return square


def lower(packed: Tensor) -> Tensor:
    """The lower triangle as a square with zeros above, (..., d (d + 1) / 2) -> (..., d, d)."""
    count = packed.shape[-1]
    wide = (math.isqrt(8 * count + 1) - 1) // 2
    if wide * (wide + 1) // 2 != count:
        raise ValueError(f"{count} numbers are no triangle")
    square = packed.new_zeros(*packed.shape[:-1], wide, wide)
    _copy_rows(packed, square, into_square=True)
    return square


def _copy_rows(packed: Tensor, square: Tensor, *, into_square: bool) -> None:
    start = 0
    for row in range(square.shape[-1]):
        ends = packed[..., start : start + row + 1], square[..., row, : row + 1]
        target, source = ends[::-1] if into_square else ends
        target.copy_(source)
        start += row + 1


def pack_root(square: Tensor) -> Tensor:
    """L in bfloat16, packed: M is nearly S L L^T S with S diagonal, (..., d, d) -> (..., d (d + 1) / 2).

    L is the Cholesky factor of M's correlations, what is off their diagonal shrunk by 2^-20 (more, where M is less
    positive than its rounding). Rounding M itself would make it indefinite; S L L^T S is positive semi-definite
    whatever L is, and S, which `unpack_root` finds, restores the diagonal exactly.

    Raises:
        HoldfastError: a matrix that is not positive semi-definite.
    """
    packed = square.new_empty(*square.shape[:-2], square.shape[-1] * (square.shape[-1] + 1) // 2, dtype=torch.bfloat16)
    for index in _matrices(square):
        matrix = square[index]
        scale = matrix.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(scale > 0, 1 / scale, 0)
        packed[index] = pack(_cholesky(matrix * inverse[:, None] * inverse).to(torch.bfloat16))
    return packed


def _cholesky(correlations: Tensor) -> Tensor:
    for share in SHRINK:
        attempt = correlations * (1 - share)
        attempt.diagonal().fill_(1)
        root, failed = torch.linalg.cholesky_ex(attempt)
        if not failed:
            return root
    raise HoldfastError(
        "a factor is not positive semi-definite and has no bfloat16 root",
        causes=["sums in too low a precision", "tensors that were edited by hand"],
        remedy="save it in float32",
    )


def unpack_root(packed: Tensor, diagonal: Tensor) -> Tensor:
    """S L L^T S with the diagonal given, (..., d (d + 1) / 2) and (..., d) -> (..., d, d), in the diagonal's dtype."""
    root = lower(packed)
    if root.shape[:-1] != diagonal.shape:
        raise ValueError(f"a root of {tuple(root.shape)} with a diagonal of {tuple(diagonal.shape)}")
    square = diagonal.new_empty(root.shape)
    for index in _matrices(root):
        rows = root[index].to(diagonal.dtype)
        rows *= (diagonal[index].sqrt() / rows.norm(dim=1))[:, None]
        for start in range(0, rows.shape[0], STRIP):  # the rest of each row of L is zero: a third of the work
            stop = start + STRIP
            square[index][start:stop, :stop] = rows[start:stop, :stop] @ rows[:stop, :stop].T
        square[index].diagonal().copy_(diagonal[index])
    return _mirrored(square)


def _matrices(stack: Tensor) -> Iterator[tuple[int, ...]]:
    """The index of every matrix of a stack, (..., d, d)."""
    return product(*map(range, stack.shape[:-2]))
