"""Packed triangles are exact; bfloat16 roots are positive semi-definite with the right diagonal."""

import pytest
import torch
from laws import drawn
from torch import Tensor
from torch.testing import assert_close

from holdfast.anchors import packing
from holdfast.errors import HoldfastError

WIDTHS = (2, 3, 7, packing.STRIP, packing.STRIP + 1, 2 * packing.STRIP + 5)
ROUNDING = 2**-8  # two roundings to bfloat16


def moment(width: int, rank: int | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """A second moment of rows whose coordinates differ a thousandfold in size, and whose spectrum falls."""
    rank = rank or 2 * width
    falling = torch.arange(1, rank + 1, dtype=torch.float64)[:, None] ** -1.5
    rows = (drawn(seed, rank, width) * falling) * torch.logspace(-3, 0, width, dtype=torch.float64)
    square = (rows.T @ rows).tril()
    return (square + square.tril(-1).T).to(dtype)  # products may differ in the last bit on either side


def through_root(square: Tensor) -> Tensor:
    """What is stored and what comes back, from float64 pieces: the pieces' own exactness, not float32's."""
    diagonal = square.diagonal(dim1=-2, dim2=-1)
    return packing.unpack_root(packing.pack_root(square), diagonal)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_packed_triangle_comes_back_bit_for_bit(width: int) -> None:
    square = moment(width)
    packed = packing.pack(square)
    assert packed.shape == (width * (width + 1) // 2,)
    row, column = width - 1, width // 2
    assert_close(packed[row * (row + 1) // 2 + column], square[row, column], rtol=0, atol=0)
    assert_close(packing.unpack(packed), square, rtol=0, atol=0)


def test_stacks_of_matrices_are_packed_one_by_one() -> None:
    stack = torch.stack([torch.stack([moment(5, seed=2 * i + j) for j in range(2)]) for i in range(3)])
    assert packing.pack(stack).shape == (3, 2, 15)
    assert_close(packing.unpack(packing.pack(stack)), stack, rtol=0, atol=0)
    assert_close(through_root(stack)[2, 1], through_root(stack[2, 1]), rtol=0, atol=0)


@pytest.mark.parametrize("rank", [1, 4, 60], ids="rank{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_root_is_positive_with_the_diagonal_exact(rank: int, dtype: torch.dtype) -> None:
    square = moment(40, rank, dtype=dtype)
    square[7], square[:, 7] = 0, 0  # an input that is never active
    again = packing.unpack_root(packing.pack_root(square), square.diagonal().double())
    assert_close(again.diagonal(), square.diagonal().double(), rtol=0, atol=0)
    assert_close(again, again.T, rtol=0, atol=0)
    size = square.diagonal().double().sqrt()
    assert_close(again, square.double(), rtol=0, atol=ROUNDING * float(size.max()) ** 2)
    correlation = again / torch.outer(size, size).masked_fill(torch.outer(size, size) == 0, 1)
    assert_close(correlation, square.double() / torch.outer(size, size).clamp_min(1e-30), rtol=0, atol=2 * ROUNDING)
    smallest = torch.linalg.eigvalsh(correlation).min()
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=1e-14)


def test_rounding_the_matrix_itself_would_reward_moves() -> None:
    square = moment(40)
    smallest = torch.linalg.eigvalsh(square.bfloat16().double()).min() / square.diagonal().max()
    assert_close(smallest, torch.full_like(smallest, -1e-3), rtol=0.9, atol=0)  # a move with a negative price
    kept = torch.linalg.eigvalsh(through_root(square)).min() / square.diagonal().max()
    assert_close(kept.clamp(max=0), torch.zeros_like(kept), rtol=0, atol=1e-14)


def test_flat_directions_stay_flat() -> None:
    """The price of a direction that costs nothing: second order in the rounding, so far below rounding itself."""
    square = moment(64, rank=8)
    square = square / torch.outer(square.diagonal().sqrt(), square.diagonal().sqrt())
    flat = torch.linalg.eigh(square).eigenvectors[:, :32]
    worst = (flat * (through_root(square) @ flat)).sum(dim=0).max()
    assert_close(worst, torch.zeros_like(worst), rtol=0, atol=20 * 2**-18)


def test_a_matrix_that_is_not_positive_has_no_root() -> None:
    square = torch.eye(20) - 0.5 * torch.ones(20, 20) / 5
    with pytest.raises(HoldfastError, match=r"(?s)not positive semi-definite.*save it in float32"):
        packing.pack_root(square)
    square[0, 0] = float("nan")
    with pytest.raises(HoldfastError, match="no bfloat16 root"):
        packing.pack_root(square)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "forms"),
    [
        ("inputs.full", (20, 20), torch.float32, ("triangle", "triangle", "cholesky")),
        ("inputs.blocks", (3, 20, 20), torch.float32, ("triangle", "triangle", "cholesky")),
        ("inputs.full", (1, 1), torch.float32, ("plain", "plain", "plain")),
        ("inputs.full", (2, 2), torch.float32, ("triangle", "triangle", "cholesky")),
        ("fisher", (20, 30), torch.float64, ("plain", "plain", "rounded")),
        ("inputs.low-rank", (30, 4), torch.float32, ("plain", "plain", "rounded")),
        ("inputs.low-rank.diagonal", (30,), torch.float32, ("plain", "plain", "plain")),
        ("rows", (1,), torch.float64, ("plain", "plain", "plain")),
        ("inputs.diagonal", (20,), torch.int64, ("plain", "plain", "plain")),
    ],
)
def test_what_is_stored_how(name: str, shape: tuple[int, ...], dtype: torch.dtype, forms: tuple[str, ...]) -> None:
    tensor = torch.ones(shape).to(dtype)
    for storage, wanted in zip((None, torch.float32, torch.bfloat16), forms, strict=True):
        form = packing.form_of(name, tensor, storage)
        assert form == wanted
        pieces = packing.pieces(form, tensor, storage)
        assert tuple(pieces) == packing.ENDINGS[form]
        made = {ending: piece.make() for ending, piece in pieces.items()}
        for ending, piece in pieces.items():
            assert (made[ending].dtype, tuple(made[ending].shape)) == (piece.dtype, piece.shape)
        assert_close(packing.unpacked(form, made).to(dtype), tensor, rtol=0, atol=2**-19)  # shrunk by 2^-20


def test_pieces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="no triangle"):
        packing.unpack(torch.ones(11))
    with pytest.raises(ValueError, match="diagonal"):
        packing.unpack_root(torch.ones(10, dtype=torch.bfloat16), torch.ones(3))
