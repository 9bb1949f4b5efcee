"""Choosing SIFT's entries from batches: against dense gradients taken the plain way, and what it leaves behind."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from architectures import convolution_2d
from sift_models import cut, llama, sifted, token_batches
from torch import nn
from two_processes import in_two

from holdfast.errors import HoldfastError
from holdfast.sift import SiftConfig
from holdfast.sift.allocation import Competition, top, top_rows
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import select
from holdfast.targets import base_layers

HERE = Path(__file__).parent


def plain_gradients(base, batches):
    """Per batch: items, and name -> gradient of the batch's mean loss; of an untouched model."""
    found = []
    for batch in batches:
        base.zero_grad()
        items = int((batch["labels"][:, 1:] != -100).sum())
        logits = base.eval()(batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100).backward()
        found.append((items, {name: p.grad.clone() for name, p in base.named_parameters()}))
    return found


def plain_scores(score, base, batches, name):
    """The equations, and what stands for g^2 in the captured share."""
    gradients = [(items, grads[name]) for items, grads in plain_gradients(base, batches)]
    weight = dict(base.named_parameters())[name].detach()
    mean = sum(items * g for items, g in gradients) / sum(items for items, _ in gradients)
    square = sum(g**2 for _, g in gradients) / len(gradients)
    scored = {"gradient": mean.abs(), "fisher": square, "taylor": (mean * weight).abs(), "product": mean * weight**3}
    return scored[score], square if score == "fisher" else mean**2


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("score", ["gradient", "fisher", "taylor", "product"])
def test_the_choice_is_that_of_plain_dense_gradients(scope, score):
    base, batches = llama(), token_batches()
    asked = (lambda g, w: g * w**3) if score == "product" else score
    bounds = {"floor": 0.02, "ceiling": 0.3} if scope == "global" else {}
    model = sifted(copy.deepcopy(base), scope=scope, score=asked, batches=3, **bounds)
    found = entries_of(model)
    counts = {name: len(one.entries.values) for name, one in found.items()}
    selection = select(model, [*batches, "never read"])
    known = {name: plain_scores(score, base, batches, name) for name in found}
    if scope == "global":
        sizes = {name: one.tensor.numel() for name, one in found.items()}
        contest = Competition(sizes, round(0.1 * sum(sizes.values())), 0.02, 0.3)
        for name, (scored, _) in known.items():
            contest.add(name, scored.flatten())
        wanted = {name: indices for name, (indices, _) in contest.winners().items()}
    else:
        rows = scope == "row"
        wanted = {n: top_rows(s, counts[n]) if rows else top(s.flatten(), counts[n]) for n, (s, _) in known.items()}
    for name, one in found.items():
        torch.testing.assert_close(one.entries.indices.long(), wanted[name], msg=name)
        energy = known[name][1].flatten()
        share = (energy[wanted[name]].sum() / energy.sum()) ** 0.5
        assert selection.tensors[name].captured == pytest.approx(float(share), rel=1e-9)
    assert selection.batches == 3
    assert selection.items == sum(items for items, _ in plain_gradients(base, batches))
    assert selection.count == sum(len(indices) for indices in wanted.values())


@pytest.mark.parametrize("score", ["random", "magnitude", "magnitude-low"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_scores_without_gradients_need_no_batches(score, scope):
    chosen = [select(sifted(score=score, scope=scope, seed=3)) for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert chosen[0].captured is None
    assert chosen[0].items == 0


def test_a_global_choice_keeps_to_the_count_and_to_the_bounds():
    model = sifted(scope="global", count=120, floor=0.05, ceiling=0.2, batches=2)
    selection = select(model, token_batches())
    assert selection.count == 120
    for chosen in selection.tensors.values():
        assert int(0.05 * chosen.size + 1e-6) <= chosen.count <= int(0.2 * chosen.size + 1e-6)
    loss = model(**token_batches()[0]).loss
    loss.backward()
    for one in entries_of(model).values():
        assert one.entries.values.grad.shape == one.entries.indices.shape


@pytest.mark.parametrize("memory", [1e-6, 0.002, 1024])
def test_how_tensors_are_grouped_changes_nothing_but_the_number_of_passes(memory):
    model, calls = sifted(batches=3, scope="global"), []
    whole = select(sifted(batches=3, scope="global"), token_batches())
    model.get_base_model().model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    assert select(model, token_batches(), accumulator_mb=memory) == whole
    groups, room = 0, 0
    for one in entries_of(model).values():
        size = 8 * one.tensor.numel() / 2**20
        groups, room = (groups, room - size) if groups and size <= room else (groups + 1, memory - size)
    assert len(calls) == 3 * groups


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("score", ["gradient", "fisher"])
def test_nothing_dense_of_a_tensor_outlives_its_pass(scope, score):
    sizes = [(11, 7), (13, 11), (17, 13)]
    model = sifted(nn.Sequential(*[nn.Linear(n, m) for m, n in sizes]), target_modules=["0", "1", "2"],
                   scope=scope, score=score, density=0.05)  # fmt: skip
    earlier, alive = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)], []
    known = {id(t) for t in earlier} | {p.data_ptr() for p in model.parameters()}

    def look(*_):
        found = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in known]
        found = [t for t in found if t.data_ptr() not in known]  # asked last: a sparse tensor has none
        alive.append([sum(t.numel() == m * n for t in found) for m, n in sizes])

    model.get_base_model().register_forward_pre_hook(look)
    target = torch.zeros(2, dtype=torch.int64)
    select(model, [torch.ones(2, 7)], lambda m, x: (m(x), target), accumulator_mb=1e-9)
    own = 1 if score == "gradient" else 2  # the sum, and that of the batch at hand
    assert alive == [[own, 0, 0], [0, own, 0], [0, 0, own]]


@pytest.mark.parametrize("size", [1, 3, 6])
def test_how_sequences_are_batched_does_not_change_the_choice(size):
    batches = token_batches()
    whole = select(sifted(batches=3), batches)
    other = select(sifted(batches=6 // size), cut(batches, size))
    assert other.checksum == whole.checksum
    assert other.items == whole.items


def test_a_shared_tensor_is_chosen_by_the_sum_over_its_uses():
    base, batches = llama(), token_batches()
    for score in ("gradient", "fisher"):
        model = sifted(copy.deepcopy(base), target_modules=["embed_tokens"], batches=3, score=score)
        select(model, batches)
        (name, one), *_ = entries_of(model).items()
        wanted = top(plain_scores(score, base, batches, name)[0].flatten(), len(one.entries.values))
        torch.testing.assert_close(one.entries.indices.long(), wanted)


def test_convolutions_and_a_loss_of_the_users_own():
    base = convolution_2d()
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(3, 2, 6, 5, generator=generator).double(), torch.tensor([0, 2, 1]))]
    loss = lambda model, batch: (model(batch[0]), batch[1])  # noqa: E731
    model = sifted(copy.deepcopy(base), target_modules=["first", "second"], biases=True, scope="row")
    select(model, batches, loss)
    nn.functional.cross_entropy(base(batches[0][0]), batches[0][1]).backward()
    for name, one in entries_of(model).items():
        gradient = base.get_parameter(name).grad.abs()
        rows = gradient.flatten(1) if gradient.dim() > 1 else gradient.view(1, -1)
        torch.testing.assert_close(one.entries.indices.long(), top_rows(rows, len(one.entries.values)), msg=name)


def test_nothing_is_left_behind():
    model = sifted(batches=2, modules_to_save=["norm"])
    model.get_base_model().model.layers[1].eval()
    before = {name: module.weight.clone() for name, module in base_layers(model).items()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    flags = {name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in named(model)}
    modes = {name: module.training for name, module in model.named_modules()}
    random = torch.get_rng_state()
    select(model, token_batches())
    torch.testing.assert_close(torch.get_rng_state(), random)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, parameter in named(model):
        assert parameter.requires_grad == flags[name][0]
        torch.testing.assert_close(parameter.grad, flags[name][1])
    for name, module in base_layers(model).items():
        torch.testing.assert_close(module.weight, before[name], rtol=0, atol=0)
    assert all(one.entries.observer is None for one in entries_of(model).values())


def named(model):
    """Parameters that selecting may not replace."""
    return list(model.named_parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_checkpoint_go_on_doing_so(reentrant, monkeypatch):
    whole = select(sifted(batches=2), token_batches())
    model, seen = sifted(batches=2), []
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for layer in model.get_base_model().model.layers:
        own = layer._gradient_checkpointing_func
        monkeypatch.setattr(
            layer, "_gradient_checkpointing_func", lambda *a, own=own, **k: (seen.append(1), own(*a, **k))[1]
        )
    assert select(model, token_batches()).checksum == whole.checksum
    assert len(seen) == 4


def test_choosing_again_before_training_starts_from_the_same_weights():
    model = sifted(batches=1)
    first = select(model, token_batches(seed=1))
    second = select(model, token_batches(seed=2))
    assert second.checksum != first.checksum
    assert select(model, token_batches(seed=1)) == first


def test_few_batches_are_noted_and_none_refused():
    with pytest.warns(UserWarning, match="3 batches to choose entries on, and the adapter wants 4"):
        assert select(sifted(batches=4), token_batches()).batches == 3
    for nothing in (None, []):
        with pytest.raises(HoldfastError, match="there are no batches to choose entries on"):
            select(sifted(), nothing)


def test_a_loss_that_is_not_finite_is_refused_and_nothing_moved():
    model = sifted()
    model.get_base_model().model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(HoldfastError, match="a batch to choose entries on: the loss is nan"):
        select(model, token_batches())
    assert not any(one.entries.chosen or one.entries.observer for one in entries_of(model).values())
    assert model.training


def test_a_tensor_without_a_gradient_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.used(x)

    model = sifted(Unused(), target_modules=["used", "idle"])
    with pytest.warns(UserWarning, match=r"no gradient reached 1 tensors.*idle\.weight"):
        select(model, [torch.ones(2, 3)], lambda m, x: (m(x), torch.tensor([0, 1])), accumulator_mb=1e-6)


@pytest.mark.parametrize("score", ["gradient", "magnitude"])
def test_entries_that_are_merged_or_put_away_are_refused(score):
    model = sifted(score=score)
    select(model, token_batches())
    model.add_adapter("other", SiftConfig(score=score))
    with pytest.raises(HoldfastError, match="adapter of the entries is not active"):
        select(model, token_batches(), adapter="other")
    with model.disable_adapter(), pytest.raises(HoldfastError, match="is not active"):
        select(model, token_batches())
    model.merge_adapter()
    with pytest.raises(HoldfastError, match="merged into the base weights"):
        select(model, token_batches())


def test_two_active_adapters_choose_one_at_a_time():
    model = sifted(density=0.05, batches=2)
    model.add_adapter("other", SiftConfig(density=0.1, batches=2))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(HoldfastError, match="several SIFT adapters are active"):
        select(model, token_batches())
    chosen = [select(model, token_batches(), adapter=name) for name in ("default", "other")]
    assert chosen == [select(sifted(density=density, batches=2), token_batches()) for density in (0.05, 0.1)]


def test_two_processes_choose_the_same_as_one(tmp_path):
    told = in_two(HERE / "sift_worker.py", tmp_path / "out.json")
    for scope in ("tensor", "global"):
        whole = select(sifted(batches=4, scope=scope), token_batches(4))
        assert told[scope] == [[whole.checksum, whole.items, 4]] * 2
    assert told["in place"] == [told["tensor"][0][0]] * 2
    assert "DistributedDataParallel has already sized them" in told["wrapped"][0]
    assert "there are no batches" in told["nothing"][0]
    assert "rank 0 failed: HoldfastError: there are no batches" in told["nothing"][1]
    assert "the ranks chose different entries" in told["different"][0]
    assert told["callback"][0] == told["callback"][1]
    assert [(step, batches) for step, _, batches in told["callback"][0][0]] == [(0, 2), (2, 2)]
