"""Choosing again while training goes on, and both choices in trainers."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from sift_models import llama, sifted, token_batches
from torch import nn
from trainer_worker import base_model, make_trainer, rows

from holdfast.errors import HoldfastError
from holdfast.sift.callback import SiftCallback
from holdfast.sift.entries import carried
from holdfast.sift.finding import entries_of
from holdfast.sift.refresh import refresh
from holdfast.sift.selection import select
from holdfast.targets import base_layers

OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def step(model, optimizer, batch):
    optimizer.zero_grad()
    model(**batch).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("seed", range(4))
def test_states_are_carried_by_entry(seed):
    generator = torch.Generator().manual_seed(seed)
    before, after = (torch.randperm(20, generator=generator)[:7].sort().values.int() for _ in range(2))
    state = torch.randn(7, generator=generator)
    known = dict(zip(before.tolist(), state.tolist(), strict=True))
    wanted = [known.get(index, 0.0) for index in after.tolist()]
    assert carried(state, before, after, torch.zeros(7)).tolist() == wanted


def test_gradients_of_before_a_choice_go_with_their_entries():
    model = sifted(target_modules=["q_proj"], density=0.3)
    model(**token_batches(1)[0]).loss.backward()
    for name, one in entries_of(model).items():
        before = dict(zip(one.entries.indices.tolist(), one.entries.values.grad.tolist(), strict=True))
        one.entries.move((one.entries.indices + 1) % one.tensor.numel())
        after = zip(one.entries.indices.tolist(), one.entries.values.grad.tolist(), strict=True)
        assert all(gradient == before.get(index, 0.0) for index, gradient in after), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_a_refresh_is_masked_dense_training_whose_mask_changes(kind, scope):
    base, batches = llama().eval(), token_batches(4)
    model = sifted(copy.deepcopy(base), scope=scope, density=0.2).eval()
    select(model, batches[:1])
    found = entries_of(model)
    values = OPTIMIZERS[kind]([one.entries.values for one in found.values()])
    dense = {name: base.get_parameter(name) for name in found}
    start = {name: tensor.detach().clone() for name, tensor in dense.items()}
    slow = OPTIMIZERS[kind](dense.values())
    for number in range(5):
        if number == 3:
            counts = {name: len(one.entries.values) for name, one in found.items()}
            masks = {name: mask(one) for name, one in found.items()}
            refresh(model, batches[2:3], values)
            assert {name: len(one.entries.values) for name, one in found.items()} == counts
            assert any(not torch.equal(mask(one), masks[name]) for name, one in found.items())
        masks = {name: mask(one) for name, one in found.items()}
        step(model, values, batches[number % 2])
        masked_step(base, slow, dense, start, masks, batches[number % 2])
        for name, one in found.items():
            torch.testing.assert_close(one.tensor.detach(), dense[name].detach(), msg=name)


def mask(found):
    """Of the tensor's shape, true where entries train."""
    return torch.zeros(found.tensor.numel(), dtype=torch.bool).index_fill_(0, found.entries.indices.long(), True).view(
        found.tensor.shape
    )  # fmt: skip


def masked_step(base, optimizer, dense, start, masks, batch):
    """What is outside the mask has no gradient, no state and the weight that it began with."""
    for name, tensor in dense.items():
        for state in optimizer.state.get(tensor, {}).values():
            if isinstance(state, torch.Tensor) and state.dim():
                state.mul_(masks[name])
        tensor.data = torch.where(masks[name], tensor.data, start[name])
    optimizer.zero_grad()
    base(**batch).loss.backward()
    for name, tensor in dense.items():
        tensor.grad.mul_(masks[name])
    optimizer.step()
    for name, tensor in dense.items():  # weight decay acts everywhere
        tensor.data = torch.where(masks[name], tensor.data, start[name])


def test_entries_that_leave_go_back_to_the_base_bit_for_bit():
    model = sifted(density=0.2, decay_to="start").bfloat16()
    before = {name: module.weight.clone() for name, module in base_layers(model).items()}
    select(model, token_batches(1))
    optimizer = torch.optim.AdamW([one.entries.values for one in entries_of(model).values()], lr=0.1)
    for batch in token_batches(3):
        step(model, optimizer, batch)
        refresh(model, token_batches(1, seed=9), optimizer)
    moved = 0
    for name, one in entries_of(model).items():
        changed = one.tensor != before[name.removesuffix(".weight")]
        assert not (changed & ~mask(one)).any()
        moved += int(changed.sum())
    assert moved > 0


def test_a_refresh_that_changes_nothing_changes_no_bit_of_the_run():
    ends = []
    for again in (False, True):
        model = sifted(score="random", density=0.2).eval()
        optimizer = OPTIMIZERS["AdamW"]([one.entries.values for one in entries_of(model).values()])
        for batch in token_batches(4):
            step(model, optimizer, batch)
            if again:
                refresh(model, optimizer=optimizer)
        ends.append([one.entries.values.detach().clone() for one in entries_of(model).values()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Halves(torch.optim.SGD):
    """States that are no number for each entry, as those of 8-bit and factored optimizers."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["factor"] = parameter.new_zeros(len(parameter) // 2 + 2)


def test_states_that_belong_to_no_entry_are_refused_before_anything_moves():
    model = sifted(density=0.2)
    select(model, token_batches(1))
    found = entries_of(model)
    optimizer = Halves([one.entries.values for one in found.values()], lr=0.1)
    step(model, optimizer, token_batches(1)[0])
    indices = {name: one.entries.indices.clone() for name, one in found.items()}
    with pytest.raises(HoldfastError, match="state 'factor' is not one number for each entry"):
        refresh(model, token_batches(1, seed=4), optimizer)
    for name, one in found.items():
        torch.testing.assert_close(one.entries.indices, indices[name])


def run(folder, *, steps=6, resume=None, trainer="Trainer", **options):
    """A trainer's run, and its callback."""
    options = {"refresh": 2, "batches": 2, "density": 0.2, "target_modules": ["q_proj", "down_proj"], **options}
    callback = SiftCallback(progress=False)
    settings = {"max_steps": steps, "learning_rate": 0.02, "save_strategy": "steps", "save_steps": 3,
                "lr_scheduler_type": "constant", "callbacks": [callback]}  # fmt: skip
    made = make_trainer(trainer, sifted(base_model(), **options), str(folder), **settings)
    made.train(resume_from_checkpoint=resume)
    return made.model, callback


def test_a_trainer_chooses_before_the_first_step_and_again(tmp_path):
    model, callback = run(tmp_path)
    assert [step for step, _ in callback.selections] == [0, 2, 4]  # not after the last step
    assert [one.batches for _, one in callback.selections] == [2, 2, 2]
    assert len({one.checksum for _, one in callback.selections}) == 3
    assert all(one.entries.chosen for one in entries_of(model).values())


def test_a_resumed_run_chooses_as_an_uninterrupted_one(tmp_path):
    whole, callback = run(tmp_path / "whole")
    run(tmp_path / "part", steps=3)
    resumed, later = run(tmp_path / "part", resume=str(tmp_path / "part" / "checkpoint-3"))
    assert later.selections == callback.selections[2:]
    for (name, one), other in zip(entries_of(whole).items(), entries_of(resumed).values(), strict=True):
        torch.testing.assert_close(one.entries.indices, other.entries.indices, msg=name)
        torch.testing.assert_close(one.entries.values, other.entries.values, msg=name)


def test_a_resumed_run_of_a_global_choice_keeps_its_sizes(tmp_path):
    whole, _ = run(tmp_path / "whole", scope="global")
    run(tmp_path / "part", steps=3, scope="global")
    resumed, later = run(tmp_path / "part", resume=str(tmp_path / "part" / "checkpoint-3"), scope="global")
    assert [step for step, _ in later.selections] == [4]
    for one, other in zip(entries_of(whole).values(), entries_of(resumed).values(), strict=True):
        torch.testing.assert_close(one.entries.values, other.entries.values)


def test_choosing_leaves_the_trainers_own_batches_alone(tmp_path):
    orders = []
    for options in ({"score": "random"}, {"score": "gradient", "refresh": 1}):
        model, seen = sifted(base_model(), **options), []
        model.get_base_model().register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["input_ids"]) if "labels" in kwargs else None,
            with_kwargs=True,
        )
        make_trainer("Trainer", model, str(tmp_path), max_steps=5, callbacks=[SiftCallback(progress=False)]).train()
        orders.append(torch.stack(seen))
    torch.testing.assert_close(orders[0], orders[1])
    assert len(orders[0]) == 5


def test_trls_trainer_chooses_too(tmp_path):
    _, callback = run(tmp_path, trainer="SFTTrainer", steps=3)
    assert [step for step, _ in callback.selections] == [0, 2]


def test_batches_of_the_users_own_are_taken_in_turns(tmp_path):
    own, expected = token_batches(3), sifted(base_model(), batches=2)
    callback = SiftCallback(own, progress=False)
    model = sifted(base_model(), batches=2, refresh=1)
    make_trainer("Trainer", model, str(tmp_path), max_steps=2, learning_rate=0.0, callbacks=[callback]).train()
    wanted = [select(expected, own[:2]).checksum, select(expected, [own[2], own[0]]).checksum]
    assert [one.checksum for _, one in callback.selections] == wanted


def test_what_is_chosen_already_stays(tmp_path):
    model, callback = sifted(base_model()), SiftCallback(progress=False)
    chosen = select(model, token_batches())
    make_trainer("Trainer", model, str(tmp_path), callbacks=[callback]).train()
    assert callback.selections == []
    for name, one in entries_of(model).items():
        assert len(one.entries.values) == chosen.tensors[name].count


def test_a_stream_needs_batches_of_its_own(tmp_path):
    stream = Dataset.from_dict({"input_ids": rows()["input_ids"]}).to_iterable_dataset()
    trainer = make_trainer("Trainer", sifted(base_model()), str(tmp_path), callbacks=[SiftCallback(progress=False)])
    trainer.train_dataset = stream
    with pytest.raises(HoldfastError, match="the training data is a stream"):
        trainer.train()


def test_a_global_choice_comes_too_late_under_several_processes():
    callback, arguments = SiftCallback(progress=False), SimpleNamespace(world_size=2)
    with pytest.raises(HoldfastError, match="DistributedDataParallel has already sized them"):
        callback.on_train_begin(arguments, SimpleNamespace(), None, model=sifted(scope="global"))


def test_a_model_without_entries_is_refused():
    with pytest.raises(HoldfastError, match="the model has no SIFT adapter"):
        SiftCallback().on_train_begin(SimpleNamespace(), SimpleNamespace(), None, model=nn.Linear(2, 2))


def warned(caught):
    return [str(one.message) for one in caught if "asks for entries to be chosen again" in str(one.message)]


@pytest.mark.parametrize(("refreshed", "steps", "warnings_seen"), [(False, 8, 1), (False, 3, 0), (True, 8, 0)])
def test_a_refresh_that_nobody_does_is_warned_of_once(refreshed, steps, warnings_seen):
    model = sifted(refresh=3)
    optimizer = torch.optim.SGD([one.entries.values for one in entries_of(model).values()], lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(1, steps + 1):
            step(model, optimizer, token_batches(1)[0])
            if refreshed and number % 3 == 0:
                refresh(model, token_batches(1), optimizer)
    said = warned(caught)
    assert len(said) == warnings_seen
    assert all("SiftCallback" in one and "holdfast.sift.refresh.refresh" in one and "every 3" in one for one in said)


@pytest.mark.parametrize("callbacks", [[], [SiftCallback(progress=False)]])
def test_trainers_are_warned_of_a_missing_callback(callbacks, tmp_path):
    model = sifted(base_model(), refresh=2, score="gradient")
    trainer = make_trainer("Trainer", model, str(tmp_path), max_steps=4, callbacks=callbacks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert trainer.state.global_step > 2
    assert len(warned(caught)) == (not callbacks)
