"""Several SIFT adapters on a model, other adapters beside it, and adapters off for a while."""

import copy
from pathlib import Path

import pytest
import torch
from architectures import llama
from laws import price
from networks import NETWORKS
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from penalising import anchor_of
from sifted import batches, bits, loss, perceptron, sifted, train, trainable
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.penalties.distill import Distill
from holdfast.penalties.quadratic import Penalty
from holdfast.pretrained import adapters_off
from holdfast.shifts.read import shifts
from holdfast.sift.config import SiftConfig
from holdfast.sift.entries import Entries
from holdfast.sift.finding import entries_of

X = batches(1)[0][0]
IDS = torch.arange(10).view(2, 5)
EXACT = {"rtol": 0, "atol": 0}


def two(dtype: torch.dtype = torch.float32, towards: str = "zero") -> tuple[nn.Module, PeftModel]:
    """A base, and a model with two adapters whose entries meet in part."""
    base = perceptron(dtype)
    model = sifted(copy.deepcopy(base), targets=("0", "2"), density=0.5, seed=1)
    more = SiftConfig(target_modules=["0", "4"], density=0.5, seed=2, score="random", decay_to=towards, biases=True)
    model.add_adapter("second", more)
    generator = torch.Generator().manual_seed(4)
    for adapter in ("default", "second"):
        for one in entries_of(model, adapter).values():
            with torch.no_grad():
                one.entries.values.add_(torch.randn(len(one.entries.values), generator=generator))
    return base, model.eval()


def summed(base: nn.Module, model: PeftModel, adapters: list[str]) -> dict[str, Tensor]:
    """Base + increments, dense, in float32; rounded."""
    held = {name: tensor.detach().clone() for name, tensor in base.named_parameters()}
    for name, tensor in held.items():
        flat = tensor.float().flatten()
        for adapter in adapters:
            one = entries_of(model, adapter).get(name)
            if one is not None:
                flat.index_add_(0, one.entries.indices.long(), one.entries.increments().detach())
        held[name] = flat.view(tensor.shape).to(tensor.dtype)
    return held


def names(model: PeftModel) -> dict[str, Tensor]:
    bare = {name.replace(".base_layer", ""): p for name, p in model.base_model.model.named_parameters()}
    return {name: p.detach() for name, p in bare.items() if "sift_" not in name}


@pytest.mark.parametrize("adapters", [["default"], ["second"], ["default", "second"], ["second", "default"]])
@pytest.mark.parametrize("towards", ["zero", "start"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_active_adapters_are_summed(adapters, towards, dtype):
    base, model = two(dtype, towards)
    model.base_model.set_adapter(adapters)
    wanted = summed(base, model, adapters)
    torch.testing.assert_close(names(model), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    with model.disable_adapter():
        torch.testing.assert_close(names(model), dict(base.named_parameters()), **EXACT)
        torch.testing.assert_close(model(X.to(dtype)), base(X.to(dtype)), **EXACT)
    torch.testing.assert_close(names(model), wanted, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


def test_both_active_adapters_train_where_they_meet():
    base, model = two(torch.float64)
    model.base_model.set_adapter(["default", "second"])
    dense = copy.deepcopy(base)
    with torch.no_grad():
        for name, tensor in dense.named_parameters():
            tensor.copy_(names(model)[name])
    data = batches(1, dtype=torch.float64)[0]
    loss(model, data).backward()
    loss(dense, data).backward()
    gradients = {name: tensor.grad.flatten() for name, tensor in dense.named_parameters()}
    for adapter in ("default", "second"):
        for name, one in entries_of(model, adapter).items():
            torch.testing.assert_close(one.entries.values.grad, gradients[name][one.entries.indices], **EXACT)


def test_switching_and_deleting_leave_no_trace():
    base, model = two()
    alone = {adapter: summed(base, model, [adapter]) for adapter in ("default", "second")}
    for adapter in ("second", "default", "second"):
        model.set_adapter(adapter)
        torch.testing.assert_close(names(model), alone[adapter], rtol=1e-6, atol=1e-6)
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {adapter}
    model.delete_adapter("second")
    torch.testing.assert_close(names(model), alone["default"], rtol=1e-6, atol=1e-6)
    with pytest.raises(HoldfastError, match="no SIFT adapter is called 'second'"):
        entries_of(model, "second")
    bare = model.unload()
    torch.testing.assert_close(dict(bare.named_parameters()), dict(base.named_parameters()), **EXACT)


def test_merging_one_of_two():
    base, model = two()
    wanted = summed(base, model, ["second"])
    merged = model.merge_and_unload(adapter_names=["second"])
    torch.testing.assert_close(dict(merged.named_parameters()), wanted, rtol=1e-6, atol=1e-6)


def test_two_adapters_are_saved_and_loaded_apart(tmp_path):
    base, model = two(towards="start")
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    again.load_adapter(tmp_path / "second", "second")
    for adapters in (["default"], ["second"], ["default", "second"]):
        model.base_model.set_adapter(adapters)
        again.base_model.set_adapter(adapters)
        torch.testing.assert_close(again(X), model(X), **EXACT)


def test_several_active_adapters_want_a_name():
    _, model = two()
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(HoldfastError, match="several SIFT adapters are active: default, second"):
        entries_of(model)


def test_a_teacher_may_run_between_a_students_passes():
    base, model = two()
    train(model, batches(1), torch.optim.SGD(trainable(model), lr=0.1))
    data = batches(1)[0]
    plain = torch.autograd.grad(loss(model, data), trainable(model))
    student = loss(model, data)
    with torch.no_grad(), adapters_off(model):
        torch.testing.assert_close(model(X), base(X), **EXACT)
    between = torch.autograd.grad(student, trainable(model))
    torch.testing.assert_close(between, plain, **EXACT)


def test_distillation_from_the_model_without_its_adapter():
    model = sifted(llama(), targets=["q_proj", "down_proj"])
    penalty = Distill(model, source=[{"input_ids": IDS, "labels": IDS}], weight=1.0, progress=False)
    torch.testing.assert_close(penalty().detach(), torch.zeros(()).double(), rtol=0, atol=1e-12)
    with torch.no_grad():
        for one in entries_of(model).values():
            one.entries.values.add_(0.5)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.05)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        values.append(penalty())
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("towards", ["zero", "start"])
def test_entries_that_move_leave_the_base_behind(towards):
    base = perceptron()
    model = sifted(copy.deepcopy(base), targets=("0",), decay_to=towards)
    one = entries_of(model)["0.weight"]
    one.entries.move(torch.tensor([9, 3, 20]))
    with torch.no_grad():
        one.entries.values.add_(1.0)
    one.entries.write()
    increments = one.entries.increments().detach().clone()
    one.entries.move(torch.tensor([30, 9, 4]))
    torch.testing.assert_close(one.entries.indices, torch.tensor([4, 9, 30], dtype=torch.int32))
    wanted = torch.stack([torch.tensor(0.0), increments[1], torch.tensor(0.0)])
    torch.testing.assert_close(one.entries.increments().detach(), wanted, rtol=0, atol=1e-6)
    changed = (one.tensor != base[0].weight).flatten().nonzero().flatten()
    torch.testing.assert_close(changed, torch.tensor([9]))
    for wrong in ([1, 1], [35], [-1]):
        with pytest.raises(HoldfastError, match=r"'0\.weight' are"):
            one.entries.move(torch.tensor(wrong))


def both(base: nn.Module, start: bool = False) -> PeftModel:
    """LoRA on the queries, moved unless at its `start`, and SIFT on the last projection."""
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=start), base, "low")
    return get_peft_model(base, SiftConfig(target_modules=["down_proj"], density=0.2), "few")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lora_and_sift_on_one_model(tmp_path: Path):
    plain, model = llama(), both(llama())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[-2] for name in trained} | {name.split(".")[-3] for name in trained} >= {"few", "lora_A"}
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    wanted = model.eval()(input_ids=IDS).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=IDS).logits, plain(input_ids=IDS).logits, **EXACT)
    moved = shifts(model)
    assert {type(shift).__name__ for shift in moved.values()} == {"LowRank", "Sparse"}
    model.save_pretrained(tmp_path)
    again = llama()
    again.load_adapter(str(tmp_path / "low"), "low")
    loaded = PeftModel.from_pretrained(again, tmp_path / "few", "few").eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, wanted, **EXACT)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS).logits, wanted, rtol=1e-12, atol=1e-13)
    for name, shift in moved.items():
        now, before = merged.get_submodule(name).weight, plain.get_submodule(name).weight
        torch.testing.assert_close(shift.matrix(), now - before, rtol=0, atol=1e-12)
    assert not any(isinstance(module, Entries) for module in merged.modules())


def test_a_new_head_trains_densely_and_is_saved(tmp_path):
    base = perceptron()
    model = sifted(copy.deepcopy(base), targets=("0",), score="gradient", modules_to_save=["4"])
    train(model, batches(3), torch.optim.AdamW(trainable(model), lr=1e-2))
    head = model.base_model.model[4].modules_to_save["default"].weight
    assert (head != base[4].weight).all()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(again(X), model(X), **EXACT)
    torch.testing.assert_close(bits(again), bits(model), **EXACT)


def test_both_are_held_by_one_anchor():
    network = NETWORKS["llama"]
    anchor, forgot = anchor_of("llama", "kronecker"), []
    for strength in (0.0, 50.0):
        model, batch = both(network.build(), start=True), network.batches(2)[0]
        penalty = Penalty(model, anchor, strength)
        optimizer = torch.optim.Adam(trainable(model), lr=0.03)
        for _ in range(5):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            penalty.add_gradient()
            optimizer.step()
        wanted = sum(price(anchor.curvatures[name], one.matrix()) for name, one in shifts(model).items()) / 2
        torch.testing.assert_close(torch.tensor(penalty.predicted_forgetting), wanted.detach().float())
        forgot.append(penalty.predicted_forgetting)
    assert 0 < forgot[1] < 0.5 * forgot[0]
