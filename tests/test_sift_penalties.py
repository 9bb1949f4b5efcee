"""Holding on while SIFT trains in place: penalties, anchors, budgets and distillation on the real adapter."""

import warnings
from typing import Any

import pytest
import torch
from adapted import adapt, move, sift, sifts
from laws import EXACT, price, same
from networks import NETWORKS
from penalising import ROUNDING, STRENGTH, anchor_of, gradients_of
from torch import nn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

import holdfast
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.moved import shift_sizes
from holdfast.penalties.absolute import Absolute
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.penalties.root import Root
from holdfast.penalties.together import Together
from holdfast.shifts.sparse import Sparse
from holdfast.sift.finding import entries_of

LLAMA = NETWORKS["llama"]
NEW = LLAMA.batches(2)[0]


def lazily(**settings: Any) -> Any:
    """SIFT whose entries its first backward pass will choose."""
    return sift(LLAMA, LLAMA.build(), score="gradient", **settings)


def train(model: nn.Module, term: Any = None, steps: int = 5) -> None:
    """A plain loop on one batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**NEW).loss.backward()
        if term is not None:
            term.add_gradient()
        optimizer.step()


@pytest.mark.parametrize("make", [sift, sifts], ids=["one", "two"])
def test_shifts_are_sparse(make: Any) -> None:
    found = holdfast.shifts(move(make(LLAMA, LLAMA.build())))
    assert all(isinstance(shift, Sparse) for shift in found.values())
    for shift in found.values():
        places: Any = shift
        assert len(torch.stack([places.rows, places.columns]).unique(dim=1).T) == len(places.rows)  # each place once


def test_entries_that_are_yet_to_be_chosen_are_held_from_the_first_step() -> None:
    model = lazily()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is unpriced
        penalty = Penalty(model, anchor_of("llama", "kronecker"), 50.0)
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    free = lazily()
    train(model, penalty)
    train(free)
    assert {n: f.entries.indices.tolist() for n, f in entries_of(model).items()} == {
        n: f.entries.indices.tolist() for n, f in entries_of(free).items()
    }
    loose = Penalty(free, anchor_of("llama", "kronecker"))
    assert 0 < penalty.predicted_forgetting < 0.5 * loose.predicted_forgetting


@pytest.mark.parametrize("form", [Root, Absolute])
def test_other_forms_are_those_of_the_matrix(form: Any) -> None:
    anchor = anchor_of("llama", "absolute" if form is Absolute else "kronecker")
    model = sifts(LLAMA, LLAMA.build())
    penalty = form(model, anchor, STRENGTH)
    move(model)
    moved = {name: reader().matrix() for name, reader in penalty.prices[0].readers.items()}
    if form is Absolute:
        magnitudes = {name: anchor.curvatures[name].tensors()["magnitudes"] for name in moved}
        wanted = STRENGTH * sum((magnitudes[n] * delta.abs()).sum() for n, delta in moved.items())
    else:
        q = sum(price(anchor.curvatures[n], delta) for n, delta in moved.items())
        wanted = STRENGTH * ((q + 1e-8).sqrt() - 1e-4)
    value = penalty()
    assert_close(value, wanted, **EXACT)
    assert_close(gradients_of(value, model), gradients_of(wanted, model), **EXACT)


def test_what_is_no_matrix_moves_at_no_price_and_is_named() -> None:
    model = sift(LLAMA, LLAMA.build(), target_modules=["q_proj", "input_layernorm"])
    anchor = anchor_of("llama", "kronecker")
    with pytest.warns(UserWarning, match="input_layernorm"):
        penalty = Penalty(move(model), anchor)
    assert all(name.endswith("q_proj") for name in penalty.prices[0].readers)
    norms = sift(LLAMA, LLAMA.build(), target_modules=["input_layernorm"])
    with pytest.raises(HoldfastError, match="RMSNorm alone"):
        Penalty(norms, anchor)
    with pytest.warns(UserWarning, match="bias"):
        Penalty(sift(NETWORKS["mlp"], NETWORKS["mlp"].build(), biases=True), anchor_of("mlp", "kronecker"))


@pytest.mark.parametrize("make", [sift, sifts], ids=["one", "two"])
def test_the_weights_under_it_are_the_pre_trained_ones(make: Any) -> None:
    anchor, base = anchor_of("llama", "kronecker"), LLAMA.build()
    model = move(make(LLAMA, LLAMA.build()))
    anchor.check(model)
    reference = holdfast.snapshot(model)
    assert all(torch.equal(weight, reference[name]) for name, weight in holdfast.snapshot(base).items())
    same(Anchor.estimate(model, LLAMA.batches(2), targets=LLAMA.targets, progress=False), anchor)
    measured = Anchor.estimate(model, LLAMA.batches(2), targets=LLAMA.targets, progress=False)
    assert measured.weights == anchor.weights
    sizes, shifts = shift_sizes(model), holdfast.shifts(model)
    wanted = {n: float(shift.matrix().norm() / reference[n].norm()) for n, shift in shifts.items()}
    assert sizes == pytest.approx(wanted, rel=1e-6)
    model.merge_adapter()
    assert_close(
        {n: s.matrix() for n, s in holdfast.shifts(model).items()}, {n: s.matrix() for n, s in shifts.items()}
    )
    with pytest.raises(HoldfastError, match="merged"):
        Anchor.estimate(model, LLAMA.batches(2), targets=LLAMA.targets, progress=False)


def test_against_other_weights_the_shift_is_dense() -> None:
    other = move(LLAMA.build().requires_grad_(True), size=0.1)
    model = move(sift(LLAMA, LLAMA.build()))
    reference = holdfast.snapshot(other)
    found = holdfast.shifts(model, reference)
    plain, base = holdfast.shifts(model), holdfast.snapshot(model)
    for name, shift in found.items():
        assert_close(shift.matrix(), base[name] - reference[name] + plain[name].matrix(), **EXACT)
    with pytest.raises(HoldfastError, match="differs from the anchored weight"):
        Penalty(sift(LLAMA, other), anchor_of("llama", "kronecker"))


def test_distillation_is_the_divergence_from_the_base_and_leaves_the_entries_in_place() -> None:
    model = sift(LLAMA, LLAMA.build())
    penalty = Distill(model, LLAMA.batches(2), STRENGTH, progress=False)
    penalty.step = 0
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    move(model)
    before = {name: found.tensor.clone() for name, found in entries_of(model).items()}
    task = model(**NEW).loss  # a graph that the teacher's turn must not spoil
    wanted = gradients_of(model(**NEW).loss, model)
    value = penalty()
    assert_close(gradients_of(task, model), wanted, rtol=0, atol=0)
    assert float(value.detach()) > 0
    assert all(gradient is not None for gradient in gradients_of(value, model).values())
    assert all(torch.equal(found.tensor, before[name]) for name, found in entries_of(model).items())
    batch = penalty.source.batch(penalty.source.chosen(0), model)
    with torch.no_grad():
        scored = batch["labels"][:, 1:] != -100
        ours = model(**batch).logits[:, :-1][scored].log_softmax(dim=1)
        theirs = LLAMA.build()(**batch).logits[:, :-1][scored].log_softmax(dim=1)
        divergence = (theirs.exp() * (theirs - ours)).sum(dim=1).mean()
    assert_close(value.detach(), STRENGTH * divergence, **EXACT)


@pytest.mark.parametrize("decay_to", ["zero", "start"])
def test_settling_goes_back_to_the_entries_of_before_whenever_they_were_chosen(decay_to: str) -> None:
    model = lazily(decay_to=decay_to)
    with pytest.warns(UserWarning, match="the forecast alone steers"):
        penalty = Penalty(model, anchor_of("llama", "kronecker"), budget=1e9)
    train(model, penalty)
    came = {n: shift.matrix().detach() for n, shift in holdfast.shifts(model).items()}
    limit = penalty.predicted_forgetting / 9
    penalty.steerings[0].controller.limit = limit
    share = penalty.settle()
    assert 0.95 * limit < penalty.predicted_forgetting <= limit
    assert share == pytest.approx(1 / 3, rel=0.03)
    for name, shift in holdfast.shifts(model).items():
        assert_close(shift.matrix(), share * came[name], **EXACT)


def test_both_ways_of_holding_on_together() -> None:
    model = lazily()
    terms = [Penalty(model, anchor_of("llama", "kronecker")), Distill(model, LLAMA.batches(2), 1.0, progress=False)]
    both = Together(model, terms, 20.0)
    train(model, both)
    free = lazily()
    train(free)
    forgot = [Penalty(one, anchor_of("llama", "kronecker")).predicted_forgetting for one in (model, free)]
    assert 0 < forgot[0] < forgot[1]


def test_a_trainer_s_callback_holds_it(tmp_path: Any) -> None:
    rows = [{k: v for k, v in batch.items() if k != "position_ids"} for batch in LLAMA.batches(1)]
    data = [{name: tensor[0] for name, tensor in row.items()} for row in rows if row["labels"].shape[1] == 5]
    anchor, forgot = anchor_of("llama", "kronecker"), []
    for strength in (0.0, 50.0):
        model = lazily()
        penalty = Penalty(model, anchor, strength)
        options = TrainingArguments(
            str(tmp_path), max_steps=6, learning_rate=0.03, per_device_train_batch_size=1, report_to=[],
            save_strategy="no", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, options, train_dataset=data, callbacks=[holdfast.HoldfastCallback(penalty)]).train()
        forgot.append(penalty.predicted_forgetting)
    assert 0 < forgot[1] < 0.5 * forgot[0]


@pytest.mark.parametrize("kind", ["identity", "diagonal", "absolute"])
def test_anchors_of_its_own_entries(kind: str) -> None:
    model = adapt("sifts", LLAMA)
    options = {"curvature": kind, "space": "adapter", "progress": False}
    anchor = Anchor.estimate(model, None if kind == "identity" else LLAMA.batches(2), **options)
    values = {name: found for name, found in model.named_parameters() if found.requires_grad}
    assert sorted(c.shape[1] for c in anchor.curvatures.values()) == sorted(v.numel() for v in values.values())
    start = {name: value.detach().clone() for name, value in values.items()}
    penalty = (Absolute if kind == "absolute" else Penalty)(model, anchor, STRENGTH)
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    move(model)
    if kind == "identity":
        length = sum((value.detach() - start[name]).square().sum() for name, value in values.items())
        assert_close(penalty().detach(), STRENGTH / 2 * length, **EXACT)
    assert all(gradient is not None for gradient in gradients_of(penalty(), model).values())
    with pytest.raises(HoldfastError, match="another start"):
        anchor.check(model)


def test_the_diagonal_of_its_own_entries_is_that_of_the_weights() -> None:
    model = adapt("sift", LLAMA)
    options = {"curvature": "diagonal", "per": "sequence", "progress": False}
    own = Anchor.estimate(model, LLAMA.batches(2), space="adapter", **options)
    weights = Anchor.estimate(LLAMA.build(), LLAMA.batches(2), targets=LLAMA.targets, **options)
    for name, found in entries_of(model).items():
        layer = name.removesuffix(".weight")
        wanted = weights.curvatures[layer].tensors()["fisher"].flatten()[found.entries.indices.long()]
        mine = own.curvatures[f"{layer}.sift_weight.default.values"].tensors()["fisher"]
        assert_close(mine.flatten(), wanted, rtol=1e-9, atol=1e-12)


def test_what_is_not_chosen_is_not_measured() -> None:
    with pytest.raises(HoldfastError, match=r"not chosen yet: .*q_proj"):
        Anchor.estimate(lazily(), LLAMA.batches(2), curvature="diagonal", space="adapter", progress=False)
