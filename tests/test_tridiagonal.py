"""The block-tridiagonal curvature: where it is exact, and where it must be tapered."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from coupled import anchor_of, form, of_outputs, outputs_and_targets
from laws import ROUNDING, drawn
from networks import NETWORKS, Batch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.testing import assert_close

from holdfast.curvature.tridiagonal import chains

GGN: dict[str, Any] = {"rtol": 0, "atol": 1e-12}  # against Jacobians in float64; entries of order one


def ggn(model: nn.Module, layers: Mapping[str, Any], batch: Batch, *, classes: bool = False) -> Tensor:
    """The dense Gauss-Newton matrix per item over the layers' weights, from Jacobians."""
    weights = {f"{name}.weight": model.get_submodule(name).weight.detach() for name in layers}

    def outputs(moved: dict[str, Tensor]) -> Tensor:
        return functional_call(model, moved, (batch["x"],)).flatten(0, -2)

    now = outputs(weights)
    jacobians = jacrev(outputs)(weights)
    whole = torch.cat([jacobians[f"{name}.weight"].flatten(2) for name in layers], dim=2)  # (items, outputs, P)
    hessian = torch.eye(now.shape[1], dtype=now.dtype).expand(len(now), -1, -1)
    if classes:
        p = now.softmax(dim=1)
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("nop,noq,nqr->pr", whole, hessian, whole) / len(now)


def blocks(whole: Tensor, curvatures: Mapping[str, Any]) -> list[list[Tensor]]:
    """The matrix over all layers, layer by layer."""
    sizes = [math.prod(curvature.shape) for curvature in curvatures.values()]
    return [list(row.split(sizes, dim=1)) for row in whole.split(sizes)]


def deep_linear(*widths: int) -> nn.Module:
    """Linear maps one after another."""
    torch.manual_seed(3)
    return nn.Sequential(*[nn.Linear(inn, out) for inn, out in pairwise(widths)]).double()


@pytest.mark.parametrize("shape", [(20, 4), (5, 7, 4)], ids=["vectors", "shared over positions"])
def test_exact_for_a_deep_linear_network(shape: tuple[int, ...]) -> None:
    model, batch = deep_linear(4, 3, 5, 2), {"x": drawn(1, *shape)}
    curvatures = of_outputs(model, batch).curvatures
    found = blocks(form(curvatures, taper=False), curvatures)
    wanted = blocks(ggn(model, curvatures, batch), curvatures)
    for row in range(3):
        for column in range(3):
            near = abs(row - column) <= 1
            block = wanted[row][column] if near else torch.zeros_like(wanted[row][column])
            assert_close(found[row][column], block, **GGN)
            assert float(wanted[row][column].detach().abs().max()) > 0.01  # nothing is exact by being zero


def test_two_linear_layers_have_their_whole_ggn() -> None:
    model, batch = deep_linear(4, 5, 3), {"x": drawn(1, 20, 4)}
    curvatures = of_outputs(model, batch).curvatures
    assert_close(form(curvatures), ggn(model, curvatures, batch), **GGN)


@pytest.mark.parametrize("classes", [False, True], ids=["regression", "classes"])
def test_exact_for_one_datum(classes: bool) -> None:
    model, batch = NETWORKS["mlp"].build(), {"x": drawn(2, 1, 5), "labels": torch.zeros(1, dtype=torch.long)}
    loss = NETWORKS["mlp"].forward_loss if classes else outputs_and_targets
    curvatures = of_outputs(model, batch, forward_loss=loss).curvatures
    found = blocks(form(curvatures, taper=False), curvatures)
    wanted = blocks(ggn(model, curvatures, batch, classes=classes), curvatures)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)):
        assert_close(found[row][column], wanted[row][column], **GGN)


def test_the_plain_band_rewards_some_moves_and_the_taper_none() -> None:
    network = NETWORKS["mlp"]
    curvatures = anchor_of("mlp", "tridiagonal", network.batches(1, network.rows[:1]), fisher="data").curvatures
    plain, tapered = form(curvatures, taper=False), form(curvatures)
    # One datum: v_l v_m^T in every block, so the band is [[1, 1, 0], [1, 1, 1], [0, 1, 1]] on three directions.
    assert float(torch.linalg.eigvalsh(plain).min()) < -0.01 * float(plain.trace())
    smallest = torch.linalg.eigvalsh(tapered).min() / tapered.trace()
    assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("layers", [2, 3, 4, 7])
def test_the_taper_is_the_largest_that_stays_positive(layers: int) -> None:
    tau = 1 / (2 * math.cos(math.pi / (layers + 1)))
    beside = torch.diag(torch.full((layers - 1,), tau, dtype=torch.float64), 1)
    least = torch.linalg.eigvalsh(torch.eye(layers, dtype=torch.float64) + beside + beside.T).min()
    assert_close(least, torch.zeros_like(least), rtol=0, atol=1e-12)


@pytest.mark.parametrize("missing", ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"])
def test_a_chain_breaks_where_a_layer_is_missing(missing: str) -> None:
    curvatures = anchor_of("llama", "tridiagonal").curvatures
    names = list(curvatures)
    (whole,) = chains(curvatures)  # type: ignore[arg-type]
    assert whole == names
    left = {n: c for n, c in reversed(curvatures.items()) if n != missing}  # in any order
    at = names.index(missing)
    assert chains(left) == [piece for piece in (names[:at], names[at + 1 :]) if piece]  # type: ignore[arg-type]
