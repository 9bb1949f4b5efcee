"""Laws of every structure of a second moment, against the plain matrix."""

from collections.abc import Callable

import pytest
import torch
from factor_cases import ROWS, SCALE, TWINS, WIDTH, dense, has_the_diagonal, is_positive_semidefinite, made, summed
from laws import EXACT, drawn
from torch import Tensor
from torch.testing import assert_close

from holdfast import factors
from holdfast.errors import HoldfastError
from holdfast.factors.blocks import Blocks
from holdfast.factors.factor import Factor, Storage
from holdfast.factors.low_rank import LowRank
from holdfast.factors.rotation import turned, turned_back
from holdfast.sparse_matrix import SparseMatrix

INDICES = torch.tensor([0, 6, 3, 3, 1, 6, 6])
each_storage = pytest.mark.parametrize("name", TWINS)


def test_every_structure_is_tested() -> None:
    assert {name.partition(":")[0] for name in TWINS} == set(factors.structures())


@each_storage
def test_equals_the_slow_twin(name: str) -> None:
    factor, wanted = made(name, ROWS), TWINS[name](SCALE * ROWS.T @ ROWS)
    assert_close(dense(factor), wanted, rtol=1e-9, atol=1e-9)
    some = drawn(2, 3, WIDTH)
    assert_close(factor.times(some), some @ wanted, rtol=1e-9, atol=1e-9)
    assert factor.width == WIDTH


@each_storage
@pytest.mark.parametrize("law", [is_positive_semidefinite, has_the_diagonal], ids=lambda law: law.__name__)
def test_law(name: str, law: Callable[[Factor], None]) -> None:
    law(made(name, ROWS))


@each_storage
def test_products_with_few_entries_are_those_with_the_matrix(name: str) -> None:
    factor, wanted = made(name, ROWS), dense(made(name, ROWS))
    places = torch.randperm(5 * WIDTH, generator=torch.Generator().manual_seed(0))[:11].sort().values
    few = SparseMatrix(drawn(3, 11), places // WIDTH, places % WIDTH, (5, WIDTH))
    for start, stop in ((0, WIDTH), (0, 2), (2, 5), (4, WIDTH)):
        assert_close(factor.times_sparse(few, start, stop), (few.dense() @ wanted)[:, start:stop], **EXACT)
        part = few.between(start, stop)
        assert_close(part.dense(), few.dense()[:, start:stop], rtol=0, atol=0)
        assert_close(part.values, few.values[few.inside(start, stop)], rtol=0, atol=0)
    left, turned_few = drawn(4, WIDTH, 5), few.dense().T
    rows, columns = turned_few.nonzero(as_tuple=True)
    at = SparseMatrix(turned_few[rows, columns], rows, columns, (WIDTH, 5))
    assert_close(factor.times_at(left, at), (wanted @ left)[rows, columns], **EXACT)
    some = torch.tensor([3, 0, 3, 6, 5])
    assert_close(factor.among(some), wanted[some][:, some], **EXACT)


@each_storage
def test_the_spectrum_is_the_factor(name: str) -> None:
    factor = made(name, ROWS)
    values, rotation = factor.spectrum()
    basis = torch.eye(WIDTH, dtype=torch.float64)
    basis = basis if rotation is None else rotation.of(basis)
    assert_close(basis @ basis.T, torch.eye(WIDTH, dtype=torch.float64), rtol=0, atol=1e-10)
    assert_close(basis * values @ basis.T, dense(factor), rtol=0, atol=1e-9)
    assert float(values.min()) >= 0


@each_storage
def test_sums_of_shards_add_up_in_any_order(name: str) -> None:
    storage = factors.storage(name)
    whole = summed(storage, ROWS)
    assert_close(summed(storage, ROWS[20:], ROWS[:7], ROWS[7:20]), whole, **EXACT)
    assert_close(summed(storage, ROWS[:11]) + summed(storage, ROWS[11:]), whole, **EXACT)


@each_storage
def test_a_sum_is_left_as_it_was(name: str) -> None:
    storage = factors.storage(name)
    total = summed(storage, ROWS)
    before = total.clone()
    storage.structure.from_sum(total, 0.5, storage.option)
    assert_close(total, before, rtol=0, atol=0)


@each_storage
def test_indices_are_one_hot_rows(name: str) -> None:
    rows = torch.nn.functional.one_hot(INDICES, WIDTH).double()
    assert_close(summed(factors.storage(name), INDICES), summed(factors.storage(name), rows), **EXACT)
    assert_close(dense(made(name, INDICES)), TWINS[name](SCALE * rows.T @ rows), **EXACT)


@each_storage
def test_storage_round_trip(name: str) -> None:
    factor = made(name, ROWS)
    stored = factor.tensors()
    assert next(iter(stored)) == factor.structure
    again = factors.from_tensors(stored)
    assert_close(again.tensors(), stored, rtol=0, atol=0)
    assert_close(dense(again), dense(factor), rtol=0, atol=0)


@each_storage
def test_merged_is_the_sum_of_the_parts(name: str) -> None:
    one, other = made(name, ROWS[:12]), made(name, ROWS[12:])
    both = type(one).merged([one, other], [0.3, 2.0])
    assert_close(dense(both), 0.3 * dense(one) + 2.0 * dense(other), **EXACT)
    is_positive_semidefinite(both)


@each_storage
def test_rotation_is_the_eigenbasis(name: str) -> None:
    factor, storage = made(name, ROWS), factors.storage(name)
    rotation = factor.rotation()
    assert storage.structure.turning(WIDTH, storage.option) == (0 if rotation is None else rotation.basis.numel())
    if rotation is None:
        return
    one = torch.eye(WIDTH, dtype=torch.float64)
    basis = rotation.of(one)  # U
    assert_close(turned_back(basis, rotation.basis), one, **EXACT)
    assert_close(turned(one, rotation.basis), basis, rtol=0, atol=0)
    rotated = basis.T @ dense(factor) @ basis
    assert_close(rotated, rotated.diagonal().diag(), rtol=0, atol=1e-9)
    assert_close(rotated.diagonal().sum(), factor.diagonal().sum(), **EXACT)


@each_storage
@pytest.mark.parametrize("width", [1, 7, 12])
def test_numbers_are_what_is_held(name: str, width: int) -> None:
    storage, rows = factors.storage(name), drawn(3, 40, width)
    structure, option = storage.structure, storage.option
    told, tensors = structure.numbers(width, option), made(name, rows, width=width).tensors()
    assert told == sum(tensor.numel() for part, tensor in tensors.items() if part != "blocks.size")
    assert summed(storage, rows, width=width).numel() <= told
    assert structure.stored(width, option) <= told


@each_storage
def test_nothing_summed_prices_nothing(name: str) -> None:
    factor = made(name, ROWS, scale=0.0)
    assert_close(dense(factor), torch.zeros(WIDTH, WIDTH, dtype=torch.float64), rtol=0, atol=0)


@each_storage
def test_what_is_not_finite_stays_so(name: str) -> None:
    assert not factors.from_tensors(made(name, ROWS * float("inf")).tensors()).diagonal().isfinite().any()


@each_storage
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_are_float32_or_better(name: str, dtype: torch.dtype) -> None:
    rows = ROWS.to(dtype)
    total = summed(factors.storage(name), rows)
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    near = {"rtol": 2e-2, "atol": 0.3} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-3}
    assert_close(total.double(), summed(factors.storage(name), rows.double()), **near)


def test_blocks_are_exact_for_block_diagonal_data() -> None:
    block = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    rows = torch.cat([torch.where(block == number, ROWS, 0.0) for number in range(3)])
    assert_close(dense(made("blocks:3", rows)), SCALE * rows.T @ rows, **EXACT)
    everywhere = dense(made("blocks:3", ROWS)) - SCALE * ROWS.T @ ROWS
    assert float(everywhere.abs().max()) > 1


def test_a_wrong_structure_breaks_the_laws() -> None:
    class Unshifted(LowRank):  # the whole diagonal on top of the root's own
        structure = "unshifted"

        def __init__(self, root: Tensor, exact: Tensor) -> None:
            super().__init__(root, exact)
            self.rest = self.exact

    class Crossed(Blocks):  # blocks that are not symmetric
        structure = "crossed"

        def times(self, rows: Tensor) -> Tensor:
            return super().times(rows) + rows.roll(1, dims=1)

    with pytest.raises(AssertionError, match="not close"):
        has_the_diagonal(Unshifted.from_sum(summed(Storage(Unshifted, 2), ROWS), SCALE, 2))
    with pytest.raises(AssertionError, match="not close"):
        is_positive_semidefinite(Crossed.from_sum(summed(Storage(Crossed, 3), ROWS), SCALE, 3))


def test_names_of_storages() -> None:
    for name in TWINS:
        assert factors.storage(name).name == name
    for wrong in ("low_rank:4", "low-rank", "low-rank:0", "low-rank:x", "full:3", "blocks:-1", ""):
        with pytest.raises(HoldfastError, match="low-rank:N"):
            factors.storage(wrong)
