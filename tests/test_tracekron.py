"""Trace-exact Kronecker and the rank-one diagonal: what they keep of the Fisher, and what of it is exact."""

from typing import Any

import pytest
import slow
import torch
from allocations import Allocations
from laws import EXACT, dense, drawn, thin_equals_dense
from networks import NETWORKS, Network
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.rank_one import RankOne
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.curvature.tracekron import TraceKron
from holdfast.factors.blocks import Blocks
from holdfast.factors.diagonal import Diagonal as DiagonalFactor
from holdfast.factors.factor import Storage
from holdfast.factors.full import Full
from holdfast.targets import select

LOOSE = 0.01  # by how much, at least, an average over mini-batches differs from one over rows
OUT, INN, ROWS = 6, 5, 40
each_network = pytest.mark.parametrize("name", list(NETWORKS))


def anchor_of(name: str, kind: str, **options: Any) -> Anchor:
    """The anchor of a network as built."""
    network = NETWORKS[name]
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    return Anchor.estimate(network.build(), network.batches(2), curvature=kind, **options)


@each_network
def test_traces_and_margins_are_the_diagonals(name: str) -> None:
    trace, rank_one, diagonal = (anchor_of(name, kind).curvatures for kind in ("tracekron", "rank-one", "diagonal"))
    for layer, curvature in diagonal.items():
        fisher = curvature.tensors()["fisher"]
        prices = dense(rank_one[layer]).diagonal().reshape(fisher.shape)
        assert_close(dense(trace[layer]).trace(), fisher.sum(), **EXACT)
        assert_close(prices.sum(dim=0), fisher.sum(dim=0), **EXACT)
        assert_close(prices.sum(dim=1), fisher.sum(dim=1), **EXACT)


def measured(kind: Any, x: Tensor, g: Tensor, **size: Any) -> Any:
    """A curvature of these rows."""
    layer = LayerSize(g.shape[1], x.shape[1] if x.dim() > 1 else INN, **size)
    sums = {name: make(layer, Reading()) for name, make in kind.statistics().items()}
    for statistic in sums.values():
        statistic.add(x, g)
    return kind.from_sums(layer, sums, len(g))


def paired() -> tuple[Tensor, Tensor]:
    """Rows whose inputs are long where their gradients are."""
    length = 1 + drawn(3, ROWS, 1).square()
    return length * drawn(1, ROWS, INN), length * drawn(2, ROWS, OUT)


def by_batches(inputs: Tensor, gradients: Tensor, size: int) -> Tensor:
    """TKFAC with traces of mini-batch means in the place of a row's lengths, dense."""
    psi, phi, delta, batches = torch.zeros(OUT, OUT).double(), torch.zeros(INN, INN).double(), 0.0, ROWS // size
    for x, g in zip(inputs.split(size), gradients.split(size), strict=True):
        s, c = x.T @ x / size, g.T @ g / size
        psi, phi = psi + s.trace() * c / batches, phi + c.trace() * s / batches
        delta += float(s.trace() * c.trace()) / batches
    return torch.kron(psi, phi) / delta


def test_an_expectation_over_rows_not_over_batches() -> None:
    inputs, gradients = paired()
    ours = dense(measured(TraceKron, inputs, gradients))
    assert_close(ours, by_batches(inputs, gradients, 1), **EXACT)
    other = by_batches(inputs, gradients, ROWS // 2)
    assert float((other - ours).norm() / ours.norm()) > LOOSE


def test_long_gradients_on_long_inputs_are_priced() -> None:
    inputs, gradients = paired()
    fisher = torch.einsum("no,ni->noi", gradients, inputs).flatten(1).square().sum() / ROWS
    kronecker = (gradients.T @ gradients / ROWS).trace() * (inputs.T @ inputs / ROWS).trace()
    assert_close(dense(measured(TraceKron, inputs, gradients)).trace(), fisher, **EXACT)
    assert float(kronecker / fisher) < 0.9


@pytest.mark.parametrize("indexed", [False, True])
def test_rank_one_is_the_diagonal_of_tracekron(indexed: bool) -> None:
    inputs, gradients = paired()
    if indexed:
        inputs = torch.randint(INN, (ROWS,), generator=torch.Generator().manual_seed(1))
    one, trace = (measured(kind, inputs, gradients, indexed=indexed) for kind in (RankOne, TraceKron))
    assert_close(dense(one), torch.diag(dense(trace).diagonal()), **EXACT)
    for curvature in (one, trace):
        thin_equals_dense(curvature)


def test_rank_one_is_exact_where_the_diagonal_has_rank_one() -> None:
    inputs = drawn(1, ROWS // 8, INN).repeat_interleave(8, dim=0)
    gradients = drawn(2, 8, OUT).repeat(ROWS // 8, 1)  # every input meets every gradient
    fisher = gradients.square().T @ inputs.square() / ROWS
    assert_close(dense(measured(RankOne, inputs, gradients)), torch.diag(fisher.flatten()), **EXACT)


def test_both_are_exact_for_one_row() -> None:
    inputs, gradients = drawn(1, 1, INN), drawn(2, 1, OUT)
    own = torch.outer(gradients[0], inputs[0]).flatten()
    assert_close(dense(measured(TraceKron, inputs, gradients)), torch.outer(own, own), **EXACT)
    assert_close(dense(measured(RankOne, inputs, gradients)), torch.diag(own.square()), **EXACT)


@pytest.mark.parametrize(
    ("storage", "kept"),
    [
        (Storage(DiagonalFactor), torch.eye(4, dtype=torch.float64)),
        (Storage(Blocks, 2), torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double()),
    ],
    ids=lambda value: value.name if isinstance(value, Storage) else "",
)
def test_sides_are_stored_as_the_plan_says(storage: Storage, kept: Tensor) -> None:
    inputs, gradients = paired()[0][:, :4], paired()[1][:, :4]
    whole = measured(TraceKron, inputs, gradients)
    stored = measured(TraceKron, inputs, gradients, inputs=storage, gradients=storage)
    sides = [kept * side.times(torch.eye(4).double()) for side in (whole.gradients, whole.inputs)]
    assert isinstance(whole.inputs, Full)
    assert_close(dense(stored), torch.kron(*sides), **EXACT)
    assert_close(dense(stored).trace(), dense(whole).trace(), **EXACT)


@pytest.mark.parametrize("kind", [TraceKron, RankOne])
def test_gradients_that_are_all_zero_cost_nothing(kind: Any) -> None:
    inputs, gradients = drawn(1, ROWS, INN), torch.zeros(ROWS, OUT).double()
    nothing = measured(kind, inputs, gradients)
    both = kind.merged([nothing, nothing], [0.5, 0.5])
    for curvature in (nothing, both, nothing.damped(0.1)):
        assert_close(curvature.apply(drawn(3, OUT, INN)), torch.zeros(OUT, INN).double(), rtol=0, atol=0)


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_rank_one_forms_a_weight_for_whole_sequences_only(per: str) -> None:
    out, inn = 90, 70
    layer = nn.Sequential(nn.Linear(inn, out)).double()
    rows = [{"x": drawn(seed, 3, inn), "labels": torch.arange(3) + seed} for seed in range(3)]
    network = Network("wide", lambda: layer, rows, ["0"], NETWORKS["mlp"].forward_loss)
    options: dict[str, Any] = {"targets": ["0"], "forward_loss": network.forward_loss, "progress": False, "per": per}
    with Allocations() as made:
        anchor = Anchor.estimate(layer, network.batches(3), curvature="rank-one", **options)
        anchor.curvatures["0"].thin(drawn(1, out, 2), drawn(2, 2, inn))
    assert ((out, inn) in made.shapes) == (per == "sequence")
    if per == "token":
        assert made.largest <= 9 * max(out, inn)  # the batch's rows
    assert sum(tensor.numel() for tensor in anchor.curvatures["0"].tensors().values()) == out + inn + 3


def test_tracekron_is_nearer_than_kronecker_in_trace_on_real_layers() -> None:
    network = NETWORKS["llama"]
    model = network.build()
    rows, items = slow.row_gradients(network, model, select(model, network.targets))
    trace, kronecker = (anchor_of("llama", kind, fisher="data").curvatures for kind in ("tracekron", "kronecker"))
    missed = []
    for layer, own in rows.items():
        whole = sum(one.square().sum() for _, one in own) / items
        assert_close(dense(trace[layer]).trace(), whole, **EXACT)
        missed.append(abs(float(dense(kronecker[layer]).trace() / whole) - 1))
    assert sum(missed) / len(missed) > LOOSE
