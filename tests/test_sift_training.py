"""SIFT trains as dense training does, on its entries alone: exactly."""

import copy

import pytest
import torch
from sifted import BATCH, Twin, batches, bits, loss, masks, perceptron, sifted, train, trainable
from torch import nn

from holdfast.sift.finding import entries_of

OPTIMIZERS = [
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.0}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "foreach": True}),
    (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1, "fused": True}),
    (torch.optim.SGD, {"lr": 1e-1, "momentum": 0.9, "weight_decay": 0.01}),
    (torch.optim.RMSprop, {"lr": 1e-2}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_all_entries_train_as_the_dense_model_does(optimizer, options, dtype):
    base = perceptron(dtype)
    model = sifted(copy.deepcopy(base), density=1.0)
    twin = Twin(base, masks(model), optimizer, **options)
    data = batches(5, dtype=dtype)
    train(model, data, optimizer(trainable(model), **options))
    twin.train(data)
    for name, tensor in bits(model).items():
        torch.testing.assert_close(tensor, twin.held[name], rtol=0, atol=0)


@pytest.mark.parametrize("score", ["gradient", "random"])
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_some_entries_train_as_the_masked_dense_model_does(optimizer, options, score):
    base = perceptron(torch.float64)
    data = batches(6, dtype=torch.float64)
    model = sifted(copy.deepcopy(base), score=score, biases=True)
    train(model, data, optimizer(trainable(model), **options))
    twin = Twin(base, masks(model), optimizer, **options)  # the masks of a lazy choice are known only now
    twin.train(data)
    for name, tensor in bits(model).items():
        torch.testing.assert_close(tensor, twin.held[name], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("score", ["gradient", "random"])
def test_what_is_not_chosen_keeps_its_bits(score):
    base = perceptron()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = sifted(base, targets=("0", "2"), score=score)
    train(model, batches(4), torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.1))
    after = {name.replace(".base_layer", ""): tensor for name, tensor in base.state_dict().items()}
    for name, mask in masks(model).items():
        changed = after[name] != before[name]
        assert changed.sum() == mask.sum() == len(entries_of(model)[name].entries.indices)
        torch.testing.assert_close(changed, mask)
    for name in ("0.bias", "2.bias", "4.weight", "4.bias"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)


def test_the_gradient_score_takes_the_largest_of_the_first_batch_and_trains_on_it():
    base, data = perceptron(), batches(1)
    dense = copy.deepcopy(base)
    loss(dense, data[0]).backward()
    model = sifted(base, targets=("0",), score="gradient", density=0.2)
    loss(model, data[0]).backward()
    entries = entries_of(model)["0.weight"].entries
    gradient = dense[0].weight.grad.flatten()
    torch.testing.assert_close(entries.indices.long(), gradient.abs().topk(7).indices.sort().values)
    torch.testing.assert_close(entries.values.grad, gradient[entries.indices], rtol=0, atol=0)


def test_every_forward_pass_has_the_update_before_it():
    model = sifted(perceptron(), density=1.0, targets=("0",))
    values = entries_of(model)["0.weight"].entries.values
    optimizer = torch.optim.SGD([values], lr=0.1)
    x = batches(1)[0][0]
    for _ in range(3):
        train(model, batches(1), optimizer)
        tensor = entries_of(model)["0.weight"].tensor
        torch.testing.assert_close(tensor.flatten(), values.detach(), rtol=0, atol=0)  # before any other forward pass
        by_hand = copy.deepcopy(model.base_model.model[1:])(
            torch.nn.functional.linear(x, values.detach().view(7, 5), model.base_model.model[0].base_layer.bias)
        )
        torch.testing.assert_close(model(x), by_hand, rtol=0, atol=0)


def test_values_changed_without_an_optimizer_are_seen_by_the_next_forward_pass():
    model = sifted(perceptron(), targets=("0",))
    entries = entries_of(model)["0.weight"].entries
    x = batches(1)[0][0]
    before = model(x)
    with torch.no_grad():
        entries.values.add_(1.0)
    assert not torch.equal(model(x), before)
    torch.testing.assert_close(entries_of(model)["0.weight"].tensor.flatten()[entries.indices], entries.absolute())
    entries.values.data.add_(1.0)  # past every counter
    entries.write()
    torch.testing.assert_close(entries_of(model)["0.weight"].tensor.flatten()[entries.indices], entries.absolute())


def test_a_backward_pass_through_a_forward_pass_before_the_step_is_refused():
    model = sifted(perceptron())
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    stale = loss(model, batches(1)[0])
    train(model, batches(1), optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()


@pytest.mark.parametrize("score", ["gradient", "random"])
def test_accumulation_is_a_larger_batch(score):
    whole, base = batches(3, size=4 * BATCH, dtype=torch.float64), perceptron(torch.float64)
    model, parted = (sifted(copy.deepcopy(base), score=score, density=1.0) for _ in range(2))
    train(model, whole, torch.optim.AdamW(trainable(model), lr=1e-2))
    optimizer = torch.optim.AdamW(trainable(parted), lr=1e-2)
    for x, y in whole:
        optimizer.zero_grad()
        for part in zip(x.chunk(4), y.chunk(4), strict=True):
            (loss(parted, part) / 4).backward()
        optimizer.step()
    for name, tensor in bits(model).items():
        torch.testing.assert_close(bits(parted)[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_weight_decay_pulls_to_where_it_is_told(towards):
    model = sifted(perceptron(torch.float64), targets=("0",), decay_to=towards)
    found = entries_of(model)["0.weight"]
    with torch.no_grad():
        found.entries.values.add_(1.0)
    found.entries.write()
    before, origin = found.entries.absolute().detach().clone(), found.entries.origin
    optimizer = torch.optim.AdamW([found.entries.values], lr=0.1, weight_decay=0.5)
    found.entries.values.grad = torch.zeros_like(found.entries.values)
    optimizer.step()
    centre = torch.zeros_like(origin) if towards == "zero" else origin
    decayed = centre + (before - centre) * (1 - 0.1 * 0.5)
    torch.testing.assert_close(found.tensor.detach().flatten()[found.entries.indices], decayed)
    torch.testing.assert_close(found.entries.increments().detach(), decayed - origin)


def test_clipping_sees_the_short_vectors_only():
    base, data = perceptron(torch.float64), batches(1, dtype=torch.float64)[0]
    model = sifted(copy.deepcopy(base))
    loss(model, data).backward()
    dense = copy.deepcopy(base)
    loss(dense, data).backward()
    held = dict(dense.named_parameters())
    chosen = torch.cat([held[name].grad[mask] for name, mask in masks(model).items()])
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    torch.testing.assert_close(norm, chosen.norm())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(p.grad is None for n, p in model.named_parameters() if "sift_" not in n)


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_small_steps_add_up_under_a_bfloat16_base(towards):
    model = sifted(perceptron(torch.bfloat16), targets=("0",), decay_to=towards)
    found = entries_of(model)["0.weight"]
    optimizer = torch.optim.SGD([found.entries.values], lr=1.0)
    for _ in range(2000):
        found.entries.values.grad = torch.full_like(found.entries.values, -1e-6)
        optimizer.step()
    assert found.entries.values.dtype == torch.float32
    exact = (found.entries.origin.double() + 2000 * 1e-6).float()
    torch.testing.assert_close(found.entries.absolute().detach(), exact, rtol=0, atol=5e-5)
    torch.testing.assert_close(
        found.tensor.detach().flatten()[found.entries.indices],
        found.entries.absolute().detach().bfloat16(),
        rtol=0,
        atol=0,
    )
    assert (found.tensor.flatten()[found.entries.indices] != found.entries.origin).float().mean() > 0.5


def test_half_precision_gradients_that_overflow_choose_nothing():
    model = sifted(perceptron(), score="gradient")
    (loss(model, batches(1)[0]) * torch.inf).backward()
    found = entries_of(model)
    assert all(one.entries.values.grad.isnan().all() and not one.entries.chosen for one in found.values())
    for one in found.values():
        one.entries.values.grad = None
    loss(model, batches(1)[0]).backward()
    assert all(one.entries.chosen and one.entries.values.grad.isfinite().all() for one in found.values())
