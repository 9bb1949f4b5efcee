"""Stored samples: the divergence they predict, damping, sums of anchors, memory, and what is refused."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from allocations import Allocations
from coupled import anchor_of, form, joint_price, random_shifts
from laws import EXACT, dense, drawn, price
from networks import NETWORKS, matrix
from slow import scored
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.curvature.samples import Samples
from holdfast.curvature.samples_joint import SamplesJoint
from holdfast.errors import HoldfastError
from holdfast.penalties.prices import quadratic_form
from holdfast.shifts.low_rank import LowRank

KINDS = ["samples", "samples-joint"]
SAMPLED = 0.12  # relative: 1500 sequences of drawn labels
STEP = 1e-3  # of a random shift of order one: third order terms are a few per mille
each_kind = pytest.mark.parametrize("kind", KINDS)


def divergence(name: str, deltas: dict[str, Tensor]) -> float:
    """KL from the model as it is to the moved one, per scored item."""
    network, before, after = NETWORKS[name], NETWORKS[name].build(), NETWORKS[name].build()
    with torch.no_grad():
        for layer, delta in deltas.items():
            module = after.get_submodule(layer)
            weight = matrix(module, module.weight)
            weight += delta.reshape(weight.shape)
        total, items = 0.0, 0
        for row in network.rows:
            (was, labels), (now, _) = scored(network, before, row), scored(network, after, row)
            total += float(F.kl_div(now.log_softmax(1), was.log_softmax(1), log_target=True, reduction="sum"))
            items += len(labels)
    return total / items


@pytest.mark.parametrize("name", ["llama", "bert-tokens"])
def test_half_the_joint_form_is_the_divergence(name: str) -> None:
    batches = NETWORKS[name].batches(5)
    curvatures = anchor_of(name, "samples-joint", batches, draws=300, keep=10_000).curvatures
    for seed in range(4):
        deltas = {layer: STEP * delta for layer, delta in random_shifts(curvatures, seed).items()}
        found = divergence(name, deltas)
        assert_close(0.5 * float(joint_price(curvatures, deltas)), found, rtol=SAMPLED, atol=0)


@each_kind
@pytest.mark.parametrize("name", ["mlp", "twice", "embedding"])
def test_damping_adds_a_share_of_the_mean_eigenvalue(kind: str, name: str) -> None:
    for curvature in anchor_of(name, kind, per="sequence").curvatures.values():
        plain = dense(curvature)
        wanted = plain + 0.3 * plain.diagonal().mean() * torch.eye(len(plain), dtype=plain.dtype)
        assert_close(dense(curvature.damped(0.3)), wanted, **EXACT)
        assert_close(dense(curvature.damped(0.3).damped(0.0)), wanted, **EXACT)


@each_kind
@pytest.mark.parametrize("name", ["llama", "conv1d"])
def test_merged_anchors_are_the_anchor_of_all_data(kind: str, name: str) -> None:
    network = NETWORKS[name]
    parts = [network.rows[:3], network.rows[3:]]
    halves = [anchor_of(name, kind, network.batches(2, rows), fisher="data") for rows in parts]
    whole, merged = anchor_of(name, kind, fisher="data"), Anchor.merge(halves)
    deltas = random_shifts(whole.curvatures, 2)
    assert_close(joint_price(merged.curvatures, deltas), joint_price(whole.curvatures, deltas), rtol=1e-9, atol=0)


def test_moves_that_undo_each_other_cost_nothing() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    batch = {"x": drawn(1, 6, 3), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}
    curvatures: Any = Anchor.estimate(
        model,
        [batch],
        curvature="samples-joint",
        targets=".*",
        forward_loss=NETWORKS["mlp"].forward_loss,
        progress=False,
    ).curvatures
    first, second = (model.get_submodule(layer).weight.detach() for layer in curvatures)
    turn = drawn(4, 3, 3)  # (W2 + e W2 T)(W1 - e T W1) = W2 W1 + O(e^2)
    deltas = {"0": -turn @ first, "1": second @ turn}
    own = sum(price(curvature, deltas[layer]) for layer, curvature in curvatures.items())
    assert float(own) > 0.1
    assert_close(joint_price(curvatures, deltas) / own, torch.zeros_like(own), rtol=0, atol=1e-12)


def test_the_rank_over_all_layers_is_the_number_of_examples() -> None:
    whole = form(anchor_of("mlp", "samples-joint", keep=3, fisher="data").curvatures)
    assert int(torch.linalg.matrix_rank(whole, hermitian=True)) == 3


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("made", [Samples, SamplesJoint])
def test_the_thin_form_makes_nothing_of_the_size_of_the_weight(made: Any, indexed: bool) -> None:
    out, inn, rank, n, t = 70, 90, 2, 5, 3
    inputs = torch.arange(n * t).reshape(n, t) if indexed else drawn(1, n, t, inn)
    curvature = made(inputs, drawn(2, n, t, out), torch.arange(n), torch.tensor([inn])).damped(0.1)
    up, down = (tensor.requires_grad_() for tensor in (drawn(3, out, rank), drawn(4, rank, inn)))
    with Allocations() as once:
        quadratic_form(LowRank(up, down, 0.5), curvature).backward()
    assert once.largest <= n * t * max(out, inn)
    if made is SamplesJoint:
        with Allocations() as joint:
            made.joint({"": curvature}, {"": LowRank(up, down, 0.5)}).backward()
        assert joint.largest <= n * t * max(out, inn)


@pytest.mark.parametrize(("name", "per"), [("conv1d", "token"), ("bert-sequence", "token")])
def test_layers_with_other_rows_are_refused(name: str, per: str) -> None:
    with pytest.raises(HoldfastError, match=r"samples-joint adds up .* the same examples"):
        anchor_of(name, "samples-joint", per=per)


def test_layers_of_other_examples_are_refused() -> None:
    one, other = (anchor_of("mlp", "samples-joint", keep=2, seed=seed).curvatures for seed in (0, 1))
    mixed = one | {"2": other["2"]}
    with pytest.raises(HoldfastError, match="layer '2' keeps other examples than layer '0'"):
        joint_price(mixed, random_shifts(one, 1))


@each_kind
def test_keeping_nothing_is_refused(kind: str) -> None:
    with pytest.raises(HoldfastError, match="keep=0"):
        anchor_of("mlp", kind, keep=0)


def test_sequences_are_the_default_where_layers_are_taken_together() -> None:
    assert anchor_of("llama", "samples-joint").facts["per"] == "sequence"
    assert anchor_of("llama", "samples").facts["per"] == "token"
    assert anchor_of("llama", "samples-joint", per="token").facts["per"] == "token"
