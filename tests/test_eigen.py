"""True EKFAC: second moments measured in Kronecker's eigenbasis, held against the Fisher of each layer itself."""

from functools import cache
from typing import Any

import pytest
import slow
import slow_sequences
import torch
from laws import EXACT, ROUNDING, dense, drawn
from networks import NETWORKS, Batch, Network, matrix
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.likelihood import LabelSampler
from holdfast.targets import select

APART = 0.1  # relative Frobenius distance of eigen from Kronecker where inputs and gradients depend on each other
NEARER = 0.95  # of Kronecker's distance from the Fisher, on average over the layers of a network
NAMES = ("mlp", "conv1d", "twice", "embedding", "llama", "gpt2")
each_network = pytest.mark.parametrize("name", NAMES)


def anchor_of(network: Network, kind: str, batches: list[Batch] | None = None, **options: Any) -> Anchor:
    """The anchor of a network as built, with the data's labels."""
    batches = network.batches(2) if batches is None else batches
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "fisher": "data"} | options
    return Anchor.estimate(network.build(), batches, curvature=kind, progress=False, **options)


@cache
def gradients(name: str, per: str) -> dict[str, list[Tensor]]:
    """Layer -> the weight gradient of each row, or of each sequence's summed loss, over the root of the items."""
    network = NETWORKS[name]
    model = network.build()
    layers = select(model, network.targets)
    found, items = slow_sequences.rows_of_sequences(network, model, layers)
    if per == "token":
        return {n: [own / items**0.5 for rows in found[n] for _, own in rows] for n in layers}
    examples: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for row in network.rows:  # nothing of the twin's rows: autograd of the whole sequence's loss
        logits, labels = slow.scored(network, model, row)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        weights = [layer.weight for layer in layers.values()]
        for (name_of, layer), own in zip(layers.items(), torch.autograd.grad(loss, weights), strict=True):
            examples[name_of].append(matrix(layer, own) / items**0.5)
    return examples


def fisher(name: str, layer: str, per: str) -> Tensor:
    """The layer's Fisher as a matrix on vec(D), (out * in, out * in)."""
    stacked = torch.stack([own.flatten() for own in gradients(name, per)[layer]])
    return stacked.T @ stacked


def basis(curvature: Any) -> Tensor:
    """Its eigenvectors as a matrix on vec(D): U_G kron U_S."""
    out, inn = curvature.shape
    sides = [
        torch.eye(size, dtype=torch.float64) if turn is None else turn
        for turn, size in ((curvature.gradients, out), (curvature.inputs, inn))
    ]
    return torch.kron(*sides)


@each_network
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_the_moments_are_the_fishers_diagonal_in_the_basis(name: str, per: str) -> None:
    for layer, curvature in anchor_of(NETWORKS[name], "eigen", per=per).curvatures.items():
        turn = basis(curvature)
        assert_close(turn.T @ turn, torch.eye(len(turn), dtype=torch.float64), rtol=0, atol=1e-12)
        wanted = (turn.T @ fisher(name, layer, per) @ turn).diagonal().reshape(curvature.shape)
        found = curvature.tensors()["moments"]
        assert_close(found, wanted, rtol=1e-9, atol=ROUNDING * float(wanted.max()))


@each_network
def test_never_further_from_the_fisher_than_kronecker(name: str) -> None:
    eigen, kronecker = (anchor_of(NETWORKS[name], kind).curvatures for kind in ("eigen", "kronecker"))
    distances = []
    for layer in eigen:
        whole = fisher(name, layer, "token")
        distances.append([(dense(c[layer]) - whole).norm() / whole.norm() for c in (eigen, kronecker)])
    ours, theirs = torch.tensor(distances).T
    assert_close((ours - theirs).clamp_min(0), torch.zeros_like(ours), rtol=0, atol=1e-12)
    assert float((ours / theirs).mean()) < NEARER


@pytest.mark.parametrize("name", ["mlp", "llama"])
def test_apart_from_kronecker_where_inputs_and_gradients_depend_on_each_other(name: str) -> None:
    eigen, kronecker = (anchor_of(NETWORKS[name], kind).curvatures for kind in ("eigen", "kronecker"))
    for layer in eigen:
        difference = (dense(eigen[layer]) - dense(kronecker[layer])).norm() / dense(kronecker[layer]).norm()
        assert float(difference) > APART, layer


def test_the_same_as_kronecker_for_one_row() -> None:
    network = NETWORKS["mlp"]
    batches = network.batches(1, network.rows[:1])
    eigen, kronecker = (anchor_of(network, kind, batches).curvatures for kind in ("eigen", "kronecker"))
    for layer in eigen:
        form = dense(kronecker[layer])
        assert_close(dense(eigen[layer]), form, rtol=1e-9, atol=ROUNDING * float(form.abs().max()))


def linear(unit: Tensor) -> tuple[nn.Module, Batch]:
    """One linear map with squared error, and residuals from `unit` that every input meets: nothing is correlated."""
    torch.manual_seed(3)
    model, inputs = nn.Sequential(nn.Linear(4, 2, bias=False)).double(), drawn(1, 6, 4)
    residuals = torch.cat([unit, -unit])
    x = inputs.repeat_interleave(len(residuals), dim=0)
    with torch.no_grad():
        return model, {"x": x, "y": model(x) + residuals.repeat(len(inputs), 1)}


def squared_error(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Half the squared error summed over items, and their number."""
    return 0.5 * (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])


@pytest.mark.filterwarnings("ignore:forward_loss returned a loss")
@pytest.mark.parametrize("kind", ["eigen", "tracekron"])
def test_the_same_as_kronecker_for_independent_inputs_and_gradients(kind: str) -> None:
    model, batch = linear(drawn(2, 3, 2))
    options: dict[str, Any] = {"targets": ["0"], "fisher": "data", "forward_loss": squared_error, "progress": False}
    found, wanted = (Anchor.estimate(model, [batch], curvature=one, **options) for one in (kind, "kronecker"))
    assert_close(dense(found.curvatures["0"]), dense(wanted.curvatures["0"]), **EXACT)


def test_both_passes_draw_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[Tensor] = []
    draw = LabelSampler.draw

    def noted(probabilities: Tensor, uniform: Tensor) -> Tensor:
        labels.append(draw(probabilities, uniform))
        return labels[-1]

    monkeypatch.setattr(LabelSampler, "draw", staticmethod(noted))
    batches = NETWORKS["llama"].batches(2)
    anchor_of(NETWORKS["llama"], "eigen", batches, fisher="sampled")
    assert len(labels) == 2 * len(batches)
    assert_close(labels[: len(batches)], labels[len(batches) :], rtol=0, atol=0)
    assert len(torch.cat(labels).unique()) > 1
