"""Sparse shifts: their products by every way there is, against the dense matrix."""

from typing import Any

import pytest
import torch
from allocations import Allocations
from laws import EXACT, drawn, sparse_equals_dense
from networks import NETWORKS, matrix
from penalising import anchor_of
from torch import Tensor
from torch.testing import assert_close

from holdfast import catalogue, sparse_matrix
from holdfast.anchor import Anchor
from holdfast.curvature import two_sided
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.rank_one import RankOne
from holdfast.factors.diagonal import Diagonal
from holdfast.factors.low_rank import LowRank as LowRankFactor
from holdfast.layers import require_kind
from holdfast.penalties.prices import quadratic_form
from holdfast.shifts.dense import Dense
from holdfast.shifts.low_rank import LowRank
from holdfast.shifts.shift import Shift
from holdfast.shifts.sparse import Sparse
from holdfast.targets import base_layers

OUT, IN = 9, 7


@pytest.fixture(params=["as it is", "sparse", "in pieces", "dense"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which products are used, whatever would be the fastest."""
    if request.param != "as it is":
        monkeypatch.setattr(two_sided, "FEW", -1)
        monkeypatch.setattr(sparse_matrix, "DENSE", (10**9,) * 2 if request.param == "dense" else (0, 0))
    if request.param == "in pieces":
        monkeypatch.setattr(two_sided, "AT_A_TIME", 20)  # two columns of a layer of 9
    return request.param


@pytest.mark.parametrize("kind", catalogue.names("curvature"))
@pytest.mark.parametrize("name", ["mlp", "embedding", "conv1d"])
def test_every_way_is_the_dense_one(kind: str, name: str, way: str) -> None:
    for curvature in anchor_of(name, kind).curvatures.values():
        sparse_equals_dense(curvature)


@pytest.mark.parametrize("storage", ["diagonal", "blocks:2", "blocks:3", "low-rank:2"])
@pytest.mark.parametrize("kind", ["kronecker", "tracekron", "eigen"])
def test_every_storage_of_the_sides(kind: str, storage: str, way: str) -> None:
    if (kind, storage) == ("eigen", "low-rank:2"):
        pytest.skip("a low rank has no basis")
    network = NETWORKS["llama"]
    options = {"curvature": kind, "targets": ["q_proj", "down_proj"], "storage": storage, "progress": False}
    for curvature in Anchor.estimate(network.build(), network.batches(2), **options).curvatures.values():
        sparse_equals_dense(curvature)


@pytest.mark.parametrize("device", ["known", "unknown"])
def test_products_at_places_on_any_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "unknown":
        monkeypatch.setattr(sparse_matrix, "SAMPLING", ())
        monkeypatch.setattr(sparse_matrix, "GATHERED", 10)
    left, right = drawn(1, OUT, 5), drawn(2, 5, IN)
    places = torch.tensor([0, 3, 4, 17, 30, 62])
    few = sparse_matrix.SparseMatrix(drawn(3, 6), places // IN, places % IN, (OUT, IN))
    assert_close(few.picked_product(left, right), (left @ right)[few.rows, few.columns], **EXACT)


def sparse(seed: int, count: int, out: int = OUT, inn: int = IN) -> Sparse:
    """Some entries, in no order."""
    places = torch.randperm(out * inn, generator=torch.Generator().manual_seed(seed))[:count]
    return Sparse(drawn(seed, count).requires_grad_(), places // inn, places % inn, (out, inn))


def same(found: Tensor, wanted: Tensor, *parts: Tensor) -> None:
    """The same number, and the same gradients."""
    assert_close(found, wanted, **EXACT)
    weights = drawn(9, *found.shape)
    gradients = [torch.autograd.grad((one * weights).sum(), parts, retain_graph=True) for one in (found, wanted)]
    assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("count", [0, 1, 11, OUT * IN])
def test_projections_are_those_of_the_matrix(count: int, way: str) -> None:
    shift = sparse(1, count)
    dense = Dense(shift.matrix())
    gradients = drawn(2, 3, 4, OUT)
    rows, indices = drawn(3, 3, 4, IN), torch.randint(IN, (3, 4), generator=torch.Generator().manual_seed(0))
    for inputs in (rows, indices, indices[:, :1].expand(3, 4)):
        same(shift.projected(inputs, gradients), dense.projected(inputs, gradients), shift.values)
    assert_close(shift.scaled(torch.tensor(0.3, dtype=torch.float64)).matrix(), 0.3 * dense.matrix(), **EXACT)


@pytest.mark.parametrize("other", ["sparse", "full", "low-rank", "dense"])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_between_two_layers_it_is_the_matrix(other: str, count: int, way: str) -> None:
    out, inn = 6, 5
    made: dict[str, Any] = {
        "sparse": lambda: sparse(4, 4, out, inn),
        "full": lambda: sparse(4, out * inn, out, inn),
        "low-rank": lambda: LowRank(drawn(5, out, 2).requires_grad_(), drawn(6, 2, inn).requires_grad_(), 0.7),
        "dense": lambda: Dense(drawn(7, out, inn).requires_grad_()),
    }
    one, two = sparse(8, count), made[other]()
    gradients, inputs = drawn(10, OUT, out), drawn(11, IN, inn)
    wanted = (one.matrix() * (gradients @ two.matrix() @ inputs.T)).sum()
    same(one.between(two, gradients, inputs), wanted, *one.parts, *two.parts)
    same(two.between(one, gradients.T, inputs.T), wanted, *one.parts, *two.parts)


@pytest.mark.parametrize("name", ["mlp", "gpt2", "embedding", "conv1d", "conv2d", "dilated"])
def test_entries_are_where_the_matrix_has_them(name: str) -> None:
    for path, module in base_layers(NETWORKS[name].build()).items():
        numbers = torch.arange(module.weight.numel()).view(module.weight.shape)
        rows, columns = require_kind(path, module).entries(module, numbers.flatten().int())
        assert torch.equal(matrix(module, numbers)[rows, columns], numbers.flatten())


def wide(kind: str) -> tuple[Any, Sparse]:
    """A curvature of a wide layer in a structure smaller than the layer, and a shift of few entries."""
    out, inn = 300, 400
    shift = sparse(1, 600, out, inn)
    rank = {n: LowRankFactor(drawn(n, n, 2), drawn(n, n, 2).square().sum(dim=1) + 1) for n in (out, inn)}
    sides: dict[str, Any] = {
        "rank-one": lambda: RankOne(Diagonal(drawn(2, inn).abs()), Diagonal(drawn(3, out).abs()), torch.ones(1)),
        "low-rank": lambda: Kronecker(rank[inn], rank[out], torch.ones(1)),
    }
    return sides[kind](), shift


@pytest.mark.parametrize("kind", ["rank-one", "low-rank"])
def test_nothing_of_the_size_of_a_wide_layer_is_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(two_sided, "AT_A_TIME", 300 * 20)
    curvature, shift = wide(kind)
    with Allocations() as made:
        value = quadratic_form(shift, curvature)
        value.backward()
    assert made.largest <= 300 * 20  # of 120,000
    delta = shift.matrix().detach()
    assert_close(value, (delta * curvature.apply(delta.clone())).sum(), **EXACT)


def test_places_do_not_train() -> None:
    shift: Shift = sparse(1, 5)
    assert len(shift.parts) == 1
    assert shift.structure == "sparse"
