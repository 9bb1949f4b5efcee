"""What low-rank factors claim: exact up to their rank, never square, sound in bfloat16."""

import pytest
import torch
from allocations import Allocations
from factor_cases import ROWS, SCALE, WIDTH, dense, is_positive_semidefinite, made, nystrom
from laws import EXACT, drawn
from torch.testing import assert_close

from holdfast import factors


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_low_rank_is_exact_for_data_of_that_rank(rank: int) -> None:
    rows = drawn(4, 50, rank) @ drawn(5, rank, 20)
    factor = made("low-rank:4", rows, width=20)
    assert_close(dense(factor), SCALE * rows.T @ rows, rtol=1e-9, atol=1e-9)
    assert factor.captured() == pytest.approx(1)


def test_low_rank_tells_what_it_captured() -> None:
    factor = made("low-rank:2", ROWS)
    form = nystrom(SCALE * ROWS.T @ ROWS, 2)  # its diagonal is already the whole one
    root = factor.root @ factor.root.T
    assert_close(root - root.diagonal().diag(), form - form.diagonal().diag(), rtol=1e-9, atol=1e-9)
    assert factor.captured() == pytest.approx(float(root.trace() / form.trace()))
    assert 0.1 < factor.captured() < 0.99


@pytest.mark.parametrize("name", ["low-rank:3", "blocks:8"])
def test_no_square_is_made_of_a_wide_side(name: str) -> None:
    rows, width = drawn(6, 5, 64), 64
    with Allocations() as seen:
        factor = made(name, rows, width=width)
        again = factors.from_tensors(factor.tensors())
        type(factor).merged([factor, again], [0.5, 0.5]).times(rows)
    assert (width, width) not in seen.shapes
    assert seen.largest <= 8 * width


def test_a_root_in_bfloat16_stays_positive_with_its_diagonal() -> None:
    rows = drawn(7, 40, 2) @ drawn(8, 2, WIDTH)  # of rank 2: nothing is left beside the root
    stored = made("low-rank:4", rows).tensors()
    coarse = factors.from_tensors({n: t.to(torch.bfloat16) if t.dim() == 2 else t for n, t in stored.items()})
    is_positive_semidefinite(coarse)
    assert_close(dense(coarse).diagonal(), SCALE * rows.square().sum(dim=0), **EXACT)
    assert_close(dense(coarse), SCALE * rows.T @ rows, rtol=0.02, atol=0.02 * float(stored["low-rank.diagonal"].max()))
