"""Factors of one table of rows, and the matrices that they must be."""

from collections.abc import Callable
from typing import Any

import torch
from laws import EXACT, ROUNDING, drawn
from torch import Tensor
from torch.testing import assert_close

from holdfast import factors
from holdfast.factors.factor import Factor, Storage
from holdfast.factors.low_rank import draw

WIDTH, SCALE = 7, 0.25
ROWS = drawn(1, 30, WIDTH) * torch.linspace(0.1, 3, WIDTH)  # 7 numbers: no whole number of blocks of 3


def nystrom(moment: Tensor, rank: int) -> Tensor:
    """Y (Omega^T Y)^+ Y^T with the diagonal put right, written down."""
    sketch = moment @ (omega := draw(len(moment), min(rank, len(moment)), moment.device, moment.dtype))
    form = sketch @ torch.linalg.pinv(omega.T @ sketch, rtol=1e-14, hermitian=False) @ sketch.T
    return form - form.diagonal().diag() + moment.diagonal().diag()


def within_blocks(moment: Tensor, size: int) -> Tensor:
    """What lies in blocks of so many rows; 7 = 3 + 3 + 1."""
    block = torch.arange(len(moment)) // size
    return torch.where(block[:, None] == block, moment, 0.0)


# Storage -> the matrix that it makes of a second moment.
TWINS: dict[str, Callable[[Tensor], Tensor]] = {
    "full": lambda moment: moment,
    "diagonal": lambda moment: moment.diagonal().diag(),
    "blocks:3": lambda moment: within_blocks(moment, 3),
    "blocks:6": lambda moment: within_blocks(moment, 4),  # two blocks: 4 + 3, not 6 + 1
    "blocks:50": lambda moment: moment,
    "low-rank:2": lambda moment: nystrom(moment, 2),
    "low-rank:50": lambda moment: moment,
}


def summed(storage: Storage, *rows: Tensor, width: int = WIDTH) -> Tensor:
    """The running sum of some rows."""
    total = storage.structure.zero(width, storage.option, rows[0])
    for part in rows:
        storage.structure.accumulate(total, part, storage.option)
    return total


def made(name: str, *rows: Tensor, scale: float = SCALE, width: int = WIDTH) -> Any:
    """A factor of some rows."""
    storage = factors.storage(name)
    return storage.structure.from_sum(summed(storage, *rows, width=width), scale, storage.option)


def dense(factor: Factor) -> Tensor:
    """M, (d, d)."""
    return factor.times(torch.eye(factor.width, dtype=factor.diagonal().dtype))


def is_positive_semidefinite(factor: Factor) -> None:
    """M is symmetric, and has no negative eigenvalue."""
    form = dense(factor)
    assert_close(form, form.T, **EXACT)
    lowest = torch.linalg.eigvalsh(form).min() / form.abs().max()
    assert_close(lowest.clamp(max=0), torch.zeros_like(lowest), rtol=0, atol=ROUNDING)


def has_the_diagonal(factor: Factor) -> None:
    """Diagonal and trace are those of what was summed."""
    wanted = SCALE * ROWS.square().sum(dim=0)
    assert_close(factor.diagonal(), wanted, **EXACT)
    assert_close(dense(factor).diagonal(), wanted, **EXACT)
