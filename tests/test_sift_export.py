"""SIFT adapters in forms that need no Holdfast: read back by a process that never imports it."""

import json
import subprocess
import sys

import pytest
import torch
from architectures import convolution_1d
from cli_runs import Place, make_model, place, refused, succeeded  # noqa: F401
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from sift_models import llama, sifted
from test_sift_compose import train
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from holdfast.errors import HoldfastError
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import select
from holdfast.sift.shira import write_shira

READER = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
model, adapter, kind, out = sys.argv[1:]
base = getattr(sys.modules["transformers"], kind).from_pretrained(model)
loaded = base if adapter == "-" else PeftModel.from_pretrained(base, adapter)
ids = torch.arange(24).view(2, 12) % 20
found = {"logits": loaded.eval()(ids).logits}
if adapter != "-":
    found["merged"] = loaded.merge_and_unload()(ids).logits
torch.save(found, out)
assert not any(name.split(".")[0] == "holdfast" for name in sys.modules)
"""
IDS = torch.arange(24).view(2, 12) % 20


def read_elsewhere(model, adapter, tmp_path, kind="AutoModelForCausalLM"):
    """Logits by another process with stock PEFT; without an adapter, of the model alone."""
    command = [sys.executable, "-c", READER, str(model), str(adapter), kind, str(tmp_path / "logits.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return torch.load(tmp_path / "logits.pt")


@pytest.fixture(scope="module", params=["tensor", "global"])
def trained(request, place: Place):  # noqa: F811
    """An adapter of the tiny model, trained, and the logits with it."""
    model = sifted(LlamaForCausalLM.from_pretrained(place.model), density=0.03, scope=request.param)
    train(model, "default", 1)
    folder = place.path / f"sift-{request.param}"
    model.save_pretrained(folder)
    return folder, model.eval()(IDS).logits.detach()


def test_stock_peft_reads_what_was_exported(place, trained, tmp_path):  # noqa: F811
    adapter, logits = trained
    command = ("export", "--adapter", adapter, "--model", place.model, "--to", "shira", "--out", tmp_path / "shira")
    done = succeeded(*command, "--json").json
    found = read_elsewhere(place.model, tmp_path / "shira", tmp_path)
    bare = LlamaForCausalLM.from_pretrained(place.model)(IDS).logits
    assert float((logits - bare).abs().max()) > 0.05
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=2e-6)
    torch.testing.assert_close(found["merged"], logits, rtol=0, atol=2e-6)
    stored = load_file(tmp_path / "shira" / "adapter_model.safetensors")
    weights = {name: tensor for name, tensor in stored.items() if name.endswith("shira_weight")}
    assert sum(len(tensor) for tensor in weights.values()) == done["stored"]
    assert sum(int((tensor != 0).sum()) for tensor in weights.values()) <= done["entries"] < done["stored"]
    assert json.loads((tmp_path / "shira" / "adapter_config.json").read_text())["peft_type"] == "SHIRA"
    assert "entries" in succeeded(*command).err  # replaces its own


def test_plain_transformers_reads_what_was_merged(place, trained, tmp_path):  # noqa: F811
    adapter, logits = trained
    done = succeeded("export", "--adapter", adapter, "--model", place.model, "--out", tmp_path / "whole", "--json")
    assert done.json["parameters"] == sum(
        p.numel() for p in LlamaForCausalLM.from_pretrained(place.model).parameters()
    )
    found = read_elsewhere(tmp_path / "whole", "-", tmp_path)["logits"]
    torch.testing.assert_close(found, logits, rtol=0, atol=0)
    assert (tmp_path / "whole" / "tokenizer.json").is_file()


def test_lora_is_merged_too_but_is_no_shira(place, tmp_path):  # noqa: F811
    model = get_peft_model(LlamaForCausalLM.from_pretrained(place.model), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "lora")
    command = ("export", "--adapter", tmp_path / "lora", "--model", place.model, "--out", tmp_path / "out")
    refused(*command, "--to", "shira", says=["the model has no SIFT adapter"])
    assert not (tmp_path / "out").exists()
    succeeded(*command)
    found = read_elsewhere(tmp_path / "out", "-", tmp_path)["logits"]
    torch.testing.assert_close(found, model.eval()(IDS).logits, rtol=0, atol=1e-5)


def test_a_prefix_does_not_merge(place, tmp_path):  # noqa: F811
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(place.model), config).save_pretrained(tmp_path / "prefix")
    command = ("export", "--adapter", tmp_path / "prefix", "--model", place.model, "--out", tmp_path / "out")
    refused(*command, says=["PREFIX_TUNING does not merge"])
    assert not (tmp_path / "out").exists()


def test_half_precision_is_the_same_within_its_rounding(tmp_path):
    base = make_model(20, width=32).bfloat16()
    base.save_pretrained(tmp_path / "base")
    model = sifted(LlamaForCausalLM.from_pretrained(tmp_path / "base"), density=0.05)
    train(model, "default", 1)
    (tmp_path / "shira").mkdir()
    write_shira(model, tmp_path / "shira")
    found = read_elsewhere(tmp_path / "base", tmp_path / "shira", tmp_path)
    torch.testing.assert_close(found["logits"], model.eval()(IDS).logits, rtol=0, atol=0)


def test_a_head_that_was_trained_whole_comes_along(tmp_path):
    config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                         num_attention_heads=2, num_labels=3, pad_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "base")
    base = LlamaForSequenceClassification.from_pretrained(tmp_path / "base")
    model = sifted(base, density=0.05, task_type="SEQ_CLS")
    select(model, [{"input_ids": IDS, "labels": torch.tensor([0, 2])}])
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    (tmp_path / "shira").mkdir()
    write_shira(model, tmp_path / "shira")
    kind = "AutoModelForSequenceClassification"
    found = read_elsewhere(tmp_path / "base", tmp_path / "shira", tmp_path, kind)
    torch.testing.assert_close(found["logits"], model.eval()(IDS).logits, rtol=0, atol=2e-6)
    assert float((found["logits"] - base.model.config.num_labels).abs().min()) > 0


def convolutional():
    model = sifted(convolution_1d(), target_modules=["first"], score="magnitude")
    return model, "'first': they are those of a Conv1d"


def transposed():
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    return sifted(GPT2LMHeadModel(config), target_modules=["c_proj"], score="random"), "those of a Conv1D"


def embedded():
    return sifted(llama(), target_modules=["embed_tokens"], score="random"), "those of a Embedding"


def biased():
    model = sifted(convolution_1d(), target_modules=["head"], biases=True, score="magnitude")
    return model, "those of a bias"


def dense():
    return sifted(llama(), density=0.9, score="random"), "beyond|would have"


@pytest.mark.parametrize("case", [convolutional, transposed, embedded, biased, dense])
def test_what_shira_cannot_hold_is_refused(case, tmp_path):
    model, says = case()
    for one in entries_of(model).values():
        one.entries.values.data += 1.0
    with pytest.raises(HoldfastError, match=says) as refusal:
        write_shira(model, tmp_path)
    assert "--to merged" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_biases_that_did_not_move_are_no_obstacle(tmp_path):
    model = sifted(convolution_1d(), target_modules=["head"], biases=True, score="magnitude", density=0.1)
    written = write_shira(model, tmp_path)
    assert written.entries == sum(
        len(f.entries.indices) for f in entries_of(model).values() if f.parameter == "weight"
    )


def test_entries_that_are_not_chosen_are_refused(tmp_path):
    with pytest.raises(HoldfastError, match="are not chosen yet"):
        write_shira(sifted(), tmp_path)


def test_mistakes_on_the_command_line_are_answered(place, trained, tmp_path):  # noqa: F811
    adapter, _ = trained
    command = ("export", "--adapter", adapter, "--model", place.model)
    refused(*command, "--out", adapter, says=["would write over the adapter"])
    refused(*command, "--to", "shirra", "--out", tmp_path / "out", says=["no form is called", "did you mean shira"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(*command, "--out", tmp_path / "mine", says=["it holds other things"])
    assert not (tmp_path / "out").exists()
