"""SIFT adapters on disk, and what of a model is kept through copies, casts and state dicts."""

import copy
import json
import pickle

import pytest
import torch
from architectures import llama
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sifted import batches, bits, loss, masks, perceptron, sifted, train, trainable
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import entries_of

X = batches(1)[0][0]


def trained(dtype: torch.dtype = torch.float32, **options):
    """An adapter that has moved, and its base as it was."""
    base = perceptron(dtype)
    model = sifted(copy.deepcopy(base), biases=True, **options)
    train(model, batches(3, dtype=dtype), torch.optim.AdamW(trainable(model), lr=1e-2))
    return base, model.eval()


@pytest.mark.parametrize(
    "options", [{}, {"score": "gradient"}, {"decay_to": "start"}, {"scope": "row"}, {"count": 17}]
)
@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_comes_back_from_its_folder(tmp_path, options, low, dtype):
    base, model = trained(dtype, **options)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low).eval()
    x = X.to(dtype)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    for name, one in entries_of(model).items():
        other = entries_of(again)[name]
        for what in ("values", "indices", "origin", "base"):
            torch.testing.assert_close(getattr(other.entries, what), getattr(one.entries, what), rtol=0, atol=0)
    with again.disable_adapter():
        torch.testing.assert_close(again(x), base(x), rtol=0, atol=0)


def test_the_file_is_small_and_plain(tmp_path):
    _, model = trained()
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    entries = sum(len(one.entries.indices) for one in entries_of(model).values())
    assert sum(tensor.nbytes for tensor in held.values()) == 8 * entries + 32 * len(entries_of(model))
    assert {name.rpartition(".")[2] for name in held} == {"values", "indices", "base"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "SIFT"


def test_an_embedding_is_not_saved_whole(tmp_path):
    model = sifted(llama().float(), targets=["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path)
    assert not any("base_layer" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_another_base_is_refused_by_the_tensor_that_differs(tmp_path):
    base, model = trained()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        base[2].weight[0, 0] += 1e-6
    with pytest.raises(HoldfastError, match=r"'2\.weight'.*another base") as refusal:
        PeftModel.from_pretrained(base, tmp_path)
    assert "holdfast export --to merged" in str(refusal.value)


def test_a_damaged_file_is_refused(tmp_path):
    base, model = trained()
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    held["base_model.model.0.sift_weight.indices"][-1] = 10**6
    save_file(held, tmp_path / "adapter_model.safetensors")
    with pytest.raises(HoldfastError, match="outside the tensor"):
        PeftModel.from_pretrained(base, tmp_path)


def test_merging_changes_no_bit_and_unmerging_none():
    base, model = trained(torch.bfloat16)
    x = X.bfloat16()
    before, function = bits(model), model(x)
    model.merge_adapter()
    torch.testing.assert_close(bits(model), before, rtol=0, atol=0)
    torch.testing.assert_close(model(x), function, rtol=0, atol=0)
    model.unmerge_adapter()
    torch.testing.assert_close(bits(model), before, rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base(x), rtol=0, atol=0)
    torch.testing.assert_close(bits(model), before, rtol=0, atol=0)
    merged = model.merge_and_unload()
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), function, rtol=0, atol=0)


def test_unloading_gives_the_base_back_and_later_steps_leave_it_alone():
    base, model = trained()
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    loss(model, batches(1)[0]).backward()
    bare = model.unload()
    optimizer.step()
    torch.testing.assert_close(dict(bare.state_dict()), dict(base.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_train_apart(again):
    _, model = trained()
    before = bits(model)
    other = again(model)
    torch.testing.assert_close(bits(other), before, rtol=0, atol=0)
    train(other, batches(2), torch.optim.AdamW(trainable(other), lr=1e-2))
    torch.testing.assert_close(bits(model), before, rtol=0, atol=0)
    for one in entries_of(other).values():
        torch.testing.assert_close(one.tensor.detach().flatten()[one.entries.indices], one.entries.values.detach())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_choose_apart(again):
    model = sifted(perceptron(), score="gradient")
    under_way = loss(model, batches(1)[0])
    other = again(model)
    train(other, batches(2), torch.optim.AdamW(trainable(other), lr=1e-2))
    assert all(one.entries.chosen for one in entries_of(other).values())
    under_way.backward()
    for name, one in entries_of(model).items():
        torch.testing.assert_close(one.entries.indices, entries_of(other)[name].entries.indices)


def test_a_whole_state_dict_brings_base_and_adapter():
    base, model = trained()
    other = sifted(nn.Sequential(*(copy.deepcopy(layer) for layer in base)), biases=True, score="gradient")
    with torch.no_grad():
        other.base_model.model[0].base_layer.weight.mul_(2.0)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(X), model(X), rtol=0, atol=0)
    with other.disable_adapter():
        torch.testing.assert_close(other(X), base(X), rtol=0, atol=0)
    torch.testing.assert_close(masks(other), masks(model))


def test_a_cast_model_keeps_the_precision_of_what_trains():
    base, model = trained()
    values = {name: one.entries.values.detach().clone() for name, one in entries_of(model).items()}
    model.to(torch.bfloat16)
    x = X.bfloat16()
    for name, one in entries_of(model).items():
        torch.testing.assert_close(one.entries.values.detach(), values[name], rtol=0, atol=0)
        inside = one.tensor.detach().flatten()[one.entries.indices]
        torch.testing.assert_close(inside, values[name].bfloat16(), rtol=0, atol=0)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base.bfloat16()(x), rtol=0, atol=0)


def test_an_adapter_that_nobody_trained_comes_back_untrained(tmp_path):
    base = perceptron()
    sifted(copy.deepcopy(base), score="gradient").save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    torch.testing.assert_close(again(X), base(X), rtol=0, atol=0)
    train(again, batches(2), torch.optim.AdamW(trainable(again), lr=1e-2))
    assert all(one.entries.chosen for one in entries_of(again).values())


def test_a_score_of_ones_own_is_named_in_the_file(tmp_path):
    def mine(gradient, weight):
        return gradient.abs()

    model = sifted(perceptron(), score=mine)
    model.save_pretrained(tmp_path)
    assert SiftConfig.from_pretrained(tmp_path).score == "callable mine"


def test_a_file_says_how_many_once(tmp_path):
    base, model = trained(count=9)
    model.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (held["count"], held["density"]) == (9, None)
    (tmp_path / "adapter_config.json").write_text(json.dumps(held | {"density": 0.5}))  # as once written
    again = PeftModel.from_pretrained(base, tmp_path)
    assert (again.active_peft_config.count, again.active_peft_config.density) == (9, None)
