"""Curvature of plain parameters, sequence by sequence, against plain autograd."""

import pytest
import torch
from adapted import adapt, lora, move
from laws import EXACT
from networks import IGNORED, NETWORKS
from peft import PeftModel
from penalising import ROUNDING, gradients_of
from slow import drawn_labels
from starts import LLAMA, PLAIN, adapted_by, batches, diagonals, estimate, flat, slow_squares
from test_estimate_state import state
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.measuring.parameters import sequences_of
from holdfast.parts import select_parts
from holdfast.penalties.quadratic import Penalty

MONTE_CARLO = 0.2  # of a sum over drawn labels and random signs: seeds differ by 0.06
LORA = [
    (f, n) for f in ("lora", "patterns", "two", "lora-fa") for n in ("mlp", "conv2d", "twice", "llama", "bert-tokens")
]


@pytest.mark.parametrize(("flavour", "name"), LORA)
def test_the_diagonal_per_sequence_is_autograd_s(flavour: str, name: str) -> None:
    network = NETWORKS[name]
    model = move(adapt(flavour, network))
    labels = drawn_labels(network, model.eval(), seed=0)
    wanted = flat(model, slow_squares(network, model, labels))
    assert_close(diagonals(estimate(model, network, "diagonal", per="sequence")), wanted, **EXACT)


@pytest.mark.parametrize("method", PLAIN)
def test_plain_parameters_have_the_fisher_s_own_diagonal(method: str) -> None:
    model = move(adapted_by(method), 0.1)
    data = [row["labels"][1:][row["labels"][1:] != IGNORED] for row in LLAMA.rows]
    wanted = flat(model, slow_squares(LLAMA, model, data))
    assert len(wanted) == len(select_parts(model, "all-linear", "adapter"))
    found = estimate(model, LLAMA, "diagonal", per="sequence", fisher="data")
    assert_close(diagonals(found), wanted, **EXACT)


def test_embeddings_adapters_are_plain_and_exact() -> None:
    network = NETWORKS["embedding"]
    model = move(adapt("lora", network))
    labels = drawn_labels(network, model.eval(), seed=0)
    wanted = flat(model, slow_squares(network, model, labels))
    assert_close(diagonals(estimate(model, network, "diagonal", per="sequence")), wanted, **EXACT)


@pytest.mark.parametrize("method", ["prompt", "ia3", "dora"])
def test_plain_parameters_do_not_depend_on_batches(method: str) -> None:
    model = move(adapted_by(method), 0.1)
    one = diagonals(estimate(model, LLAMA, "diagonal", per="sequence"))
    for other in (batches(LLAMA, 5), batches(LLAMA, 3, extra=2), batches(LLAMA, 1)[::-1]):
        assert_close(diagonals(estimate(model, LLAMA, "diagonal", per="sequence", source=other)), one, **EXACT)


def test_draws_and_the_exact_expectation_reach_plain_parameters() -> None:
    model = move(adapted_by("ia3"), 0.1)
    options = {"per": "sequence", "curvature": "diagonal", "space": "adapter", "progress": False}
    exact = diagonals(Anchor.estimate(model, batches(LLAMA), fisher="exact", **options))
    many = diagonals(Anchor.estimate(model, batches(LLAMA), draws=300, **options))
    joined = [torch.cat(list(one.values())) for one in (many, exact)]
    assert_close(joined[0].sum(), joined[1].sum(), rtol=MONTE_CARLO, atol=0)


@pytest.mark.parametrize("flavour", ["lora", "dora"])
def test_what_is_measured_is_left_as_it_was(flavour: str) -> None:
    model = move(adapt(flavour, LLAMA)).train()
    next(p for n, p in model.named_parameters() if "lora_B" in n).grad = None
    kept = next(p for n, p in model.named_parameters() if "lora_A" in n)
    kept.grad = torch.full_like(kept, 3.0)
    before, weights = state(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    estimate(model, LLAMA, "diagonal", per="sequence")
    assert state(model) == before
    assert_close(model.state_dict(), weights, rtol=0, atol=0)
    assert_close(kept.grad, torch.full_like(kept, 3.0), rtol=0, atol=0)


@pytest.mark.parametrize("method", PLAIN)
def test_methods_without_a_shift_hold_on_to_their_own_parameters(method: str) -> None:
    model = adapted_by(method)
    anchor = estimate(model, LLAMA, "diagonal", per="sequence")
    penalty = Penalty(model, anchor, 0.7, prior=0.2)
    value = penalty()
    assert_close(value, torch.zeros((), dtype=torch.float64), **ROUNDING)
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    move(model, 0.1)
    moved = flat(model, {n: p - start[n] for n, p in model.named_parameters() if p.requires_grad})
    wanted = sum(
        0.7 / 2 * (diagonals(anchor)[n] * d.square()).sum() + 0.2 / 2 * d.square().sum() for n, d in moved.items()
    )
    assert_close(penalty(), wanted, **EXACT)
    assert_close(gradients_of(penalty(), model), gradients_of(wanted, model), **EXACT)


@pytest.mark.parametrize("method", ["prefix", "prompt", "ia3", "dora", "alora", "bias"])
def test_structures_made_of_rows_refuse_plain_parameters(method: str) -> None:
    model = adapted_by(method)
    with pytest.raises(HoldfastError, match=r"'kronecker' is made of a layer's inputs[\s\S]*curvature='diagonal'"):
        estimate(model, LLAMA)
    with pytest.raises(HoldfastError, match=r"per='token' squares[\s\S]*pass per='sequence'"):
        estimate(model, LLAMA, "diagonal", per="token")


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_in_the_space_of_weights_such_methods_are_sent_here(method: str) -> None:
    weights = Anchor.estimate(LLAMA.build(), batches(LLAMA), targets=["k_proj", "down_proj"], progress=False)
    with pytest.raises(HoldfastError, match="space='adapter'"):
        Penalty(adapted_by(method), weights)


def test_batches_are_taken_apart_by_their_first_dimension() -> None:
    one, two = torch.arange(6).reshape(2, 3), torch.arange(2)
    assert [len(b["x"]) for b in sequences_of({"x": one, "y": two, "name": "n", "scale": torch.tensor(1.0)})] == [1, 1]
    assert [b[1].tolist() for b in sequences_of((one, two))] == [[0], [1]]
    assert [b.tolist() for b in sequences_of(two)] == [[0], [1]]
    with pytest.raises(HoldfastError, match="one sequence each"):
        sequences_of({"x": one, "y": torch.arange(3)})


def test_a_head_that_is_trained_beside_the_adapter_is_part_of_it() -> None:
    network = NETWORKS["bert-sequence"]
    model: PeftModel = lora(network, network.build(), target_modules=["query"], modules_to_save=["classifier"])
    with pytest.raises(HoldfastError, match=r"classifier\.modules_to_save\.default\.bias"):
        estimate(model, network)
    anchor = estimate(model, network, "diagonal", per="sequence")
    assert {n for n in anchor.curvatures if "classifier" in n} == {
        "classifier.modules_to_save.default",
        "classifier.modules_to_save.default.bias",
    }
    penalty = Penalty(model, anchor)
    move(model)
    assert all(gradient is not None for gradient in gradients_of(penalty(), model).values())
