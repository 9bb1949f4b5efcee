"""Stopping when the curvature is known: what two halves of the data say, and what they leave behind."""

import warnings
from typing import Any

import pytest
import torch
from laws import drawn, price, same
from networks import NETWORKS, Batch, Network, logits_and_labels
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.diagonal import Diagonal
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.moments import InputMoment
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.measuring.agreement import LEADING, split_error
from holdfast.measuring.halves import Halves

MEASURED = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
CONVERGED = 0.03  # relative: five steps of power iteration on a spectrum that falls by half
SETS = 40  # of data
CALIBRATED = 0.35  # relative: a spread over so many, and directions that follow the noise


def anchor_of(network: Network, batches: Any, **options: Any) -> Anchor:
    """An anchor of the network as built."""
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    return Anchor.estimate(network.build(), batches, **options)


def falling(seed: int, width: int) -> tuple[Tensor, Tensor]:
    """A matrix whose eigenvalues fall by half, and its eigenvectors, the largest first."""
    vectors = torch.linalg.qr(drawn(seed, width, width)).Q
    return vectors @ torch.diag(0.5 ** torch.arange(width).double()) @ vectors.T, vectors


def test_halves_are_compared_along_the_leading_directions_of_the_whole() -> None:
    inputs, v = falling(1, 7)
    gradients, _ = falling(2, 6)
    scaled = Kronecker.of(1.2 * inputs, gradients), Kronecker.of(0.9 * inputs, gradients)
    # Eigenvalue k of a product is 4^-k; q differs by 0.3 of them, and is 1.05 of them on the whole.
    wanted = 0.5 * 0.3 / 1.05
    assert_close(split_error(scaled, [0.5, 0.5]), wanted, rtol=1e-9, atol=0)
    bent = inputs + 0.02 * torch.outer(v[:, 1], v[:, 1])
    q = torch.tensor([[4.0**-k, 4.0**-k + (0.02 * 0.5**k if k == 1 else 0)] for k in range(LEADING)]).double()
    wanted = float(0.5 * (q[:, 0] - q[:, 1]).norm() / q.mean(dim=1).norm())
    halves = Kronecker.of(inputs, gradients), Kronecker.of(bent, gradients)
    assert_close(split_error(halves, [0.5, 0.5]), wanted, rtol=CONVERGED, atol=0)


def test_a_share_of_the_data_counts_as_such() -> None:
    fisher = drawn(3, 4, 5).square()
    found = split_error([Diagonal(fisher), Diagonal(2 * fisher)], [0.75, 0.25])
    assert_close(found, 0.5 * 1 / 1.25, rtol=1e-6, atol=0)


def test_equal_halves_agree_and_empty_ones_do_too() -> None:
    fisher = drawn(3, 4, 5).square()
    assert split_error([Diagonal(fisher), Diagonal(fisher)], [0.5, 0.5]) == 0
    nothing = torch.zeros(4, 5, dtype=torch.float64)
    assert split_error([Diagonal(nothing), Diagonal(nothing)], [0.5, 0.5]) == 0


def noisy(seed: int, count: int, size: int) -> list[Batch]:
    """Rows of their own for each seed, `size` to a batch."""
    x, labels = drawn(seed, count, 5), torch.zeros(count, dtype=torch.long)
    return [{"x": one, "labels": labels[: len(one)]} for one in x.split(size)]


@pytest.mark.parametrize("kind", ["kronecker", "diagonal"])
def test_the_agreement_is_the_standard_error_of_the_whole(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    options: dict[str, Any] = {"curvature": kind, "targets": ".*", "fisher": "exact", "progress": False}
    options |= {"forward_loss": logits_and_labels}
    (truth,) = Anchor.estimate(model, noisy(99, 20_000, 5000), **options).curvatures.values()
    said, actual = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(SETS):
            anchor = Anchor.estimate(model, noisy(seed, 64, 8), until=1e-6, **options)
            (found,) = anchor.curvatures.values()
            said.append(anchor.facts["agreement"])
            directions = [torch.outer(a, b) for a, b in zip(torch.eye(3), torch.eye(5), strict=False)]
            q = torch.tensor([[float(price(c, d.double())) for d in directions] for c in (found, truth)])
            actual.append(float((q[0] - q[1]).norm() / q[1].norm()))
    spread = [float(torch.tensor(errors).square().mean().sqrt()) for errors in (said, actual)]
    assert_close(spread[0], spread[1], rtol=CALIBRATED, atol=0)


@pytest.mark.parametrize("kind", MEASURED)
def test_it_stops_as_soon_as_two_comparisons_agree(kind: str) -> None:
    network = NETWORKS["llama"]
    batches = network.batches(1, network.rows * 8)
    whole = anchor_of(network, batches, curvature=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped = anchor_of(network, batches, curvature=kind, until=0.5)
    assert stopped.items < whole.items
    assert stopped.facts["until"] == 0.5
    assert 0 < stopped.facts["agreement"] < 0.5
    same(stopped, anchor_of(network, batches, curvature=kind, max_items=stopped.items))
    assert whole.facts["agreement"] is None


def test_one_comparison_that_agrees_may_be_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter([0.01, 0.9, 0.01, 0.02, 0.9])
    monkeypatch.setattr(Halves, "agreement", lambda self, items: next(told))
    network = NETWORKS["llama"]
    stopped = anchor_of(network, network.batches(1, network.rows * 8), until=0.5)
    assert stopped.facts["agreement"] == 0.02


def test_a_limit_that_stopped_it_first_is_named() -> None:
    network = NETWORKS["llama"]
    with pytest.warns(UserWarning, match=r"max_items=4 stopped it after .* A larger max_items would"):
        anchor_of(network, network.batches(1), until=1e-9, max_items=4)


@pytest.mark.parametrize("kind", MEASURED)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_two_halves_are_the_whole(kind: str, network: Network) -> None:
    if kind == "samples-joint" and network.name in ("conv1d", "conv2d", "dilated"):
        pytest.skip("rows of layers with strides are not the same")
    with pytest.warns(UserWarning, match="before two halves agreed"):
        halves = anchor_of(network, network.batches(1), curvature=kind, until=1e-12)
    same(halves, anchor_of(network, network.batches(1), curvature=kind))


def test_data_that_end_first_are_told_with_what_they_reached() -> None:
    network = NETWORKS["llama"]
    with pytest.warns(UserWarning, match=r"ended after 14 items.*they agree to 0\.\d") as caught:
        anchor = anchor_of(network, network.batches(1), until=1e-3)
    assert f"{anchor.facts['agreement']:.2g}" in str(caught[0].message)
    with pytest.warns(UserWarning, match="too few to compare"):
        assert anchor_of(network, network.batches(5), until=1e-3).facts["agreement"] is None


def test_a_limit_comes_first() -> None:
    network = NETWORKS["llama"]
    batches = network.batches(1, network.rows * 8)
    with pytest.warns(UserWarning, match="stopped it after"):
        limited = anchor_of(network, batches, until=1e-12, max_items=20)
    same(limited, anchor_of(network, batches, max_items=20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0.0}, "above 0 and below 1"),
        ({"until": 1.0}, "above 0 and below 1"),
        ({"until": 0.1, "curvature": "identity", "source": None}, "until can't be meant"),
        ({"checkpoint": "somewhere", "curvature": "identity", "source": None}, "checkpoint can't be meant"),
        ({"shard": True, "curvature": "tridiagonal"}, "leave shard off"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    network = NETWORKS["llama"]
    given = {"source": network.batches(2), "progress": False} | options
    with pytest.raises(HoldfastError, match=message):
        Anchor.estimate(network.build(), **given)


def test_means_of_sums_that_go_on_are_new() -> None:
    statistic = InputMoment(LayerSize(3, 4), Reading())
    statistic.add(drawn(1, 6, 4))
    first = statistic.mean.diagonal().clone()
    statistic.add(2 * drawn(2, 6, 4))
    rows = torch.cat([drawn(1, 6, 4), 2 * drawn(2, 6, 4)])
    assert_close(statistic.mean.diagonal(), rows.square().mean(dim=0), rtol=1e-12, atol=0)
    assert float((first - statistic.mean.diagonal()).norm()) > 0
