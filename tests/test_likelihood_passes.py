"""Passes through whole models: what batches, order, padding and checkpointing must not change, and what is exact."""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, Head
from laws import EXACT
from networks import NETWORKS, Batch, Network
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import T5Config, T5ForConditionalGeneration

from holdfast.errors import HoldfastError
from holdfast.likelihood import Fisher, Items, LabelSampler, Scored, passes, summed_loss
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.likelihoods.unknown import Unknown

SEEDS = 300
STANDARD_ERRORS = 4.5  # the largest of some hundred entries
WITH_LIKELIHOOD = {name: head for name, head in HEADS.items() if head.kind != "Features" and "-p" not in name}

each_head = pytest.mark.parametrize("head", WITH_LIKELIHOOD.values(), ids=list(WITH_LIKELIHOOD))


def gradients(
    model: nn.Module, reader: Items, batch: Batch, fisher: Fisher, draws: int, seed: int = 3
) -> list[Tensor]:
    """All weight gradients of each pass, as one vector."""
    found = []
    scored = reader.run(batch)
    for _ in passes(scored, fisher, LabelSampler(3), draws):
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.zero_grad(set_to_none=False)
    return found


def of_head(head: Head, batches: list[Batch], fisher: Fisher, draws: int) -> list[Tensor]:
    """The gradients of each pass, summed over batches; every parameter has one."""
    model = head.build()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    reader = Items(model)
    several = [gradients(model, reader, batch, fisher, draws) for batch in batches]
    return [torch.stack(together).sum(dim=0) for together in zip(*several, strict=True)]


@each_head
@pytest.mark.parametrize(("fisher", "draws"), [("sampled", 1), ("sampled", 3), ("data", 1), ("exact", 1)])
def test_labels_do_not_depend_on_batch_order_and_padding(head: Head, fisher: Fisher, draws: int) -> None:
    if fisher == "exact" and head.kind == "CTC":
        pytest.skip("no expectation over label sequences")
    whole = of_head(head, [head.batch()], fisher, draws)
    assert fisher == "exact" or len(whole) == draws
    others = [
        [head.batch([row]) for row in reversed(head.rows)],
        [head.batch(head.rows[:1]), head.batch(head.rows[1:][::-1], extra=3)],
    ]
    for batches in others:
        found = of_head(head, batches, fisher, draws)
        for one, wanted in zip(found, whole, strict=True):
            assert_close(one, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    if draws > 1:
        assert float(torch.stack(whole).std(dim=0).max()) > 0


@each_head
def test_the_reader_knows_the_items_before_the_model_ran(head: Head) -> None:
    reader = Items(head.build())
    for batch in (head.batch(), head.batch(extra=2)):
        scored = reader.run(batch)
        assert (type(scored.likelihood).__name__, reader.item) == (head.kind, head.item)
        assert reader.items_in(batch) == scored.items
        assert reader.keys(batch) == reader.keys(head.batch(extra=5))
    assert len(set(reader.keys(head.batch()))) == len(head.rows)


@each_head
def test_the_loss_is_that_of_transformers(head: Head) -> None:
    """Means over items; a regression's squared error is twice the loss in nats at a noise of 1."""
    model = head.build()
    for row in head.rows:
        batch = head.batch([row])
        scored = Items(model).run(batch)
        theirs = model(**{"labels": batch.get("labels", batch.get("input_ids"))} | batch).loss
        per_item = {"Gaussian": 2.0, "Bernoulli": 1 / 3}.get(head.kind, 1.0)
        found = per_item * summed_loss(scored) / scored.items
        assert_close(found, theirs.to(found.dtype), rtol=1e-6, atol=0)  # some of theirs are in float32


def test_unlabelled_batches_can_be_drawn_for() -> None:
    for name in ("bert-sequence", "bert-tokens", "bert-several", "bert-regression", "vit", "wav2vec2-ctc"):
        head = HEADS[name]
        batch = head.batch()
        bare = {key: value for key, value in batch.items() if key != "labels"}
        model = head.build()
        reader = Items(model)
        labelled, unlabelled = (gradients(model, reader, one, "sampled", 2) for one in (batch, bare))
        assert reader.items_in(bare) == reader.items_in(batch) == reader.run(bare).items
        assert_close(unlabelled, labelled, **EXACT)
        with pytest.raises(HoldfastError, match="no labels"):
            gradients(model, reader, bare, "data", 1)


def weight_fisher(network: Network, model: nn.Module) -> Tensor:
    """Sum over items of E[G G^T] of all weights, one item and one class at a time; sequences of one item."""
    parameters = list(model.parameters())
    total: Any = 0
    for row in network.rows:
        batch = network.collate([row])
        if network.forward_loss is None:
            logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        else:
            logits, _ = network.forward_loss(model, batch)
        for label in range(logits.shape[1]):
            loss = F.cross_entropy(logits, torch.tensor([label]))
            parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
            gradient = torch.cat([g.flatten() for g in found])
            total = total + torch.exp(-loss.detach()) * gradient.square()
    return total


@pytest.mark.parametrize("name", ["mlp", "bert-sequence", "recomputed", "reentrant"])
def test_exact_is_exact_where_a_sequence_has_one_item(name: str) -> None:
    network = NETWORKS[name]
    plain = (network.plain or network.build)()
    model = network.build()
    reader, total = Items(model, network.forward_loss), 0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for batch in network.batches(1):
        if name == "reentrant":  # lets gradients in only where inputs want one
            batch["x"].requires_grad_()
        total = total + sum(g.square() for g in gradients(model, reader, batch, "exact", 1))
    assert_close(total, weight_fisher(network, plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["recomputed", "reentrant"])
@pytest.mark.parametrize(("fisher", "draws"), [("sampled", 4), ("exact", 1)])
def test_checkpointing_serves_several_passes(name: str, fisher: Fisher, draws: int) -> None:
    network = NETWORKS[name]
    found = []
    for build in (network.plain, network.build):
        model = build()
        batch = network.collate(network.rows)
        batch["x"].requires_grad_()
        found.append(gradients(model, Items(model, network.forward_loss), batch, fisher, draws))
    assert len(found[0]) == (draws if fisher == "sampled" else 3)
    assert_close(found[1], found[0], **EXACT)


def test_exact_is_unbiased_where_a_sequence_has_several_items() -> None:
    """Items of a sequence share weights: products between them must vanish in the mean over signs."""
    network = NETWORKS["llama"]
    model, batch = network.build(), network.collate(network.rows[1:2])
    reader, weight = Items(model), model.lm_head.weight
    logits = reader.run(batch).likelihood.outputs
    wanted: Any = 0
    for row, label in itertools.product((0, 1), range(logits.shape[1])):  # two scored items, each independent
        loss = F.cross_entropy(logits[row : row + 1], torch.tensor([label]))
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        wanted = wanted + torch.exp(-loss.detach()) * gradient.square()
    seen = []
    for seed in range(SEEDS):
        scored, total = reader.run(batch), 0
        for _ in passes(scored, "exact", LabelSampler(seed)):
            total = total + weight.grad.square()
            model.zero_grad()
        seen.append(total)
    mean, error = torch.stack(seen).mean(dim=0), torch.stack(seen).std(dim=0) / SEEDS**0.5
    off = ((mean - wanted).abs() / (error + 1e-12)).max()
    assert_close(off, torch.zeros_like(off), rtol=0, atol=STANDARD_ERRORS)


@pytest.mark.parametrize(
    ("returned", "kind", "items"),
    [
        (lambda y, labels: (y, labels), Categorical, 5),
        (lambda y, labels: (y, torch.zeros_like(y)), Gaussian, 5),
        (lambda y, labels: (y.sum(dim=1), torch.zeros(5, dtype=torch.float64)), Gaussian, 5),
        (lambda y, labels: (F.cross_entropy(y, labels, reduction="sum"), 5), Unknown, 5),
        (lambda y, labels: Gaussian(y, None, sigma=2.0), Gaussian, 5),
    ],
)
@pytest.mark.filterwarnings("ignore:forward_loss returned a loss")
def test_what_forward_loss_may_return(returned: Callable[..., Any], kind: type, items: int) -> None:
    network = NETWORKS["mlp"]
    scored = Items(network.build(), lambda m, b: returned(m(b["x"]), b["labels"])).run(network.collate(network.rows))
    assert (type(scored.likelihood), scored.items) == (kind, items)


def test_a_bare_loss_is_warned_of_once() -> None:
    network = NETWORKS["mlp"]
    reader = Items(network.build(), lambda m, b: (m(b["x"]).square().sum(), 5))
    batch = network.collate(network.rows)
    with pytest.warns(UserWarning, match="second moment of its gradients"):
        reader.run(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reader.run(batch)


@pytest.mark.parametrize(
    ("scored", "fisher", "message"),
    [
        (lambda: Scored(Unknown(torch.ones((), requires_grad=True), 3)), "sampled", "fisher='data'"),
        (lambda: Scored(Unknown(torch.ones((), requires_grad=True), 3)), "exact", "fisher='data'"),
        (lambda: Scored(Categorical(torch.zeros(2, 257), torch.tensor([0, 1]))), "exact", "draws=8"),
    ],
)
def test_passes_that_can_not_be_made_are_refused(scored: Any, fisher: Fisher, message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        list(passes(scored(), fisher, LabelSampler(0)))


def test_without_items_there_is_no_pass() -> None:
    nothing = Scored(Categorical(torch.zeros(2, 3, requires_grad=True), torch.tensor([-100, -100])))
    for fisher in ("data", "sampled", "exact"):
        assert list(passes(nothing, fisher, LabelSampler(0), 2)) == []


def test_sequence_to_sequence_models_are_refused() -> None:
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(HoldfastError, match="writes another"):
        Items(T5ForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("name", "missing"), [("bert-regression", float("nan")), ("bert-several", -100.0), ("bert-sequence", -100)]
)
def test_examples_without_a_label_are_no_items(name: str, missing: float) -> None:
    head = HEADS[name]
    blank = head.rows[1] | {"labels": torch.full_like(head.rows[1]["labels"], missing)}
    reader = Items(head.build())
    batch = head.batch([head.rows[0], blank, head.rows[2]])
    assert reader.items_in(batch) == reader.run(batch).items == 2
    assert reader.positions(batch).any(dim=1).tolist() == [True, False, True]
    scored = head.batch([head.rows[0], head.rows[2]])
    assert_close(summed_loss(reader.run(batch)), summed_loss(reader.run(scored)), **EXACT)
