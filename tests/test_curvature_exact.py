"""The cases in which an approximation must be exact, and how far off the approximate options may be."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from laws import EXACT, dense, drawn, price, thin_equals_dense
from networks import NETWORKS, Batch, Network
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.diagonal import ROWS_AT_A_TIME, Diagonal
from holdfast.curvature.identity import Identity
from holdfast.curvature.kronecker import Kronecker
from holdfast.curvature.moments import GradientMoment, InputMoment
from holdfast.curvature.statistic import LayerSize, Reading

MONTE_CARLO = 0.1  # relative: 4000 drawn labels
SMALL_SHIFT = 0.02  # of the KL: third order terms


def squared_error(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Half the squared error summed over items, and their number."""
    return 0.5 * (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


def deep_linear() -> tuple[nn.Module, Batch]:
    """Three linear maps, and residuals that are independent of the inputs: every input meets every residual."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(5, 2, bias=False)).double()
    inputs, unit = drawn(1, 6, 4), torch.eye(2, dtype=torch.float64) * 2**0.5
    residuals = torch.cat([unit, -unit])  # mean 0, second moment the identity: the model's own distribution
    x = inputs.repeat_interleave(len(residuals), dim=0)
    with torch.no_grad():
        return model, {"x": x, "y": model(x) + residuals.repeat(len(inputs), 1)}


def mean_outer_products(model: nn.Module, batch: Batch, weight: Tensor, loss: Any) -> Tensor:
    """Mean over items of vec(dW) vec(dW)^T, one item at a time."""
    total = torch.zeros(weight.numel(), weight.numel(), dtype=weight.dtype)
    items = len(batch["x"])
    for item in range(items):
        one = {name: value[item : item + 1] for name, value in batch.items()}
        (gradient,) = torch.autograd.grad(loss(model, one), weight)
        total += torch.outer(gradient.flatten(), gradient.flatten())
    return total / items


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Summed over items."""
    return F.cross_entropy(model(batch["x"]), batch["labels"], reduction="sum")


def test_kronecker_is_exact_for_a_deep_linear_network() -> None:
    model, batch = deep_linear()
    anchor = Anchor.estimate(model, [batch], fisher="data", forward_loss=squared_error, progress=False)
    for name, curvature in anchor.curvatures.items():
        weight = model.get_submodule(name).weight
        wanted = mean_outer_products(model, batch, weight, lambda *given: squared_error(*given)[0])
        assert_close(dense(curvature), wanted, **EXACT)


def test_kronecker_is_exact_for_one_row() -> None:
    network, model = NETWORKS["mlp"], NETWORKS["mlp"].build()
    batch = network.collate(network.rows[:1])
    anchor = anchor_of(network, [batch], curvature="kronecker", fisher="data")
    for name, curvature in anchor.curvatures.items():
        weight = model.get_submodule(name).weight
        assert_close(dense(curvature), mean_outer_products(model, batch, weight, cross_entropy), **EXACT)


def test_the_diagonal_is_the_mean_of_squared_gradients_not_the_square_of_their_mean() -> None:
    network, model = NETWORKS["mlp"], NETWORKS["mlp"].build()
    batch = network.collate(network.rows)
    anchor = anchor_of(network, [batch], curvature="diagonal", fisher="data")
    for name, curvature in anchor.curvatures.items():
        whole = mean_outer_products(model, batch, model.get_submodule(name).weight, cross_entropy)
        assert_close(dense(curvature), torch.diag(whole.diagonal()), **EXACT)


def anchor_of(network: Network, batches: list[Batch], **options: Any) -> Anchor:
    """An anchor of the network as built."""
    options = {"forward_loss": network.forward_loss, "targets": network.targets, "progress": False} | options
    return Anchor.estimate(network.build(), batches, **options)


def test_half_the_price_is_the_kl_divergence_in_nats() -> None:
    torch.manual_seed(5)
    model, x = nn.Linear(4, 3, bias=False).double(), drawn(2, 1, 4)
    batch = {"x": x.expand(4000, 4), "labels": torch.zeros(4000, dtype=torch.long)}
    anchor = Anchor.estimate(
        model, [batch], targets=".*", forward_loss=lambda m, b: (m(b["x"]), b["labels"]), progress=False
    )
    (curvature,) = anchor.curvatures.values()
    shift = 0.02 * drawn(3, 3, 4)
    before, after = (F.log_softmax(x @ weight.T, dim=1) for weight in (model.weight, model.weight + shift))
    divergence = (before.exp() * (before - after)).sum()
    assert_close(0.5 * price(curvature, shift), divergence.detach(), rtol=MONTE_CARLO + SMALL_SHIFT, atol=0)


def test_damping_of_the_identity_is_more_of_it() -> None:
    delta = torch.randn(5, 4, dtype=torch.float64)
    assert_close(Identity.of_shape(5, 4).damped(0.3).apply(delta), 1.3 * delta, **EXACT)


def test_damping_adds_a_share_of_the_mean_eigenvalue() -> None:
    inputs, gradients = drawn(1, 5, 3), drawn(2, 6, 4)
    s, g = inputs.T @ inputs, gradients.T @ gradients
    eye_in, eye_out = torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    delta = drawn(3, 4, 3)
    damped = Kronecker.of(s, g).damped(0.3).apply(delta)
    both = (g + 0.3 * g.trace() / 4 * eye_out) @ delta @ (s + 0.3 * s.trace() / 3 * eye_in)
    assert_close(damped, both, **EXACT)
    fisher = drawn(4, 4, 3).square()
    assert_close(Diagonal(fisher).damped(0.3).apply(delta), (fisher + 0.3 * fisher.mean()) * delta, **EXACT)


@pytest.mark.parametrize("times", [1, 2])
def test_damping_leaves_the_anchor_alone(times: int) -> None:
    curvature = Kronecker.of(torch.eye(3, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    for _ in range(times):
        curvature.damped(0.5)
    assert_close(curvature.apply(drawn(1, 4, 3)), drawn(1, 4, 3), rtol=0, atol=0)


@pytest.mark.parametrize("width", [7, 63, 64, 65, 300, 1030])
@pytest.mark.parametrize("moment", [InputMoment, GradientMoment])
def test_strips_of_a_symmetric_sum_are_the_whole_sum(width: int, moment: type) -> None:
    size = LayerSize(width, width)
    statistic, rows = moment(size, Reading()), [drawn(seed, 4, width) for seed in range(2)]
    for some in rows:
        statistic.add(some)
    wanted = sum(some.T @ some for some in rows)
    assert_close(statistic.factor(1).matrix, wanted, **EXACT)
    statistic.add(rows[0])  # the sum goes on after it was read
    assert_close(statistic.factor(1).matrix, wanted + rows[0].T @ rows[0], **EXACT)


def test_blocks_of_rows_are_the_whole_product() -> None:
    out = 2 * ROWS_AT_A_TIME + 3
    thin_equals_dense(Diagonal(drawn(1, out, 3).square()))


@pytest.mark.parametrize(
    "curvature", [Identity.of_shape(5, 4), Kronecker.of(torch.eye(4).double(), torch.eye(5).double())]
)
def test_a_shift_of_rank_zero_costs_nothing(curvature: Any) -> None:
    for_up, for_down = curvature.thin(drawn(1, 5, 0), drawn(2, 0, 4))
    assert (for_up.shape, for_down.shape) == ((5, 0), (0, 4))
