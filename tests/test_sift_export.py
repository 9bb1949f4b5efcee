"""SIFT adapters in forms that need no Holdfast: read back by a process that never imports it."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import convolution_1d
from cli_runs import Place, make_model, place, refused, succeeded  # noqa: F401
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from sift_models import llama, sifted
from test_sift_compose import train
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from holdfast.errors import HoldfastError
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import select
from holdfast.sift.shira import write_shira

READER = """
import json, sys, torch, transformers
from peft import PeftModel
found = {}
ids = torch.arange(24).view(2, 12) % 20
for name, (kind, model, adapter) in json.loads(sys.argv[1]).items():
    loaded = getattr(transformers, kind).from_pretrained(model)
    loaded = loaded if adapter is None else PeftModel.from_pretrained(loaded, adapter)
    found[name] = [loaded.eval()(ids).logits.detach()]
    if adapter is not None:
        found[name].append(loaded.merge_and_unload()(ids).logits.detach())
torch.save(found, sys.argv[2])
assert not any(name.split(".")[0] == "holdfast" for name in sys.modules)
"""
IDS = torch.arange(24).view(2, 12) % 20
CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True)
class Exported:
    """What one export is to be read back as.

    Attributes:
        kind, model, adapter: what another process loads; no adapter: the model is whole.
        logits: of the model that was exported.
        bare: of its base.
        done: what the command said.
    """

    kind: str
    model: Path
    adapter: Path | None
    logits: Tensor
    bare: Tensor
    done: dict[str, Any] = field(default_factory=dict)


def on_the_command_line(place, model, to, name):  # noqa: F811
    """Save an adapter of the tiny model, export it."""
    folder, out = place.path / f"{name}-adapter", place.path / f"{name}-{to}"
    logits = model.eval()(IDS).logits.detach()
    model.save_pretrained(folder)
    command = ("export", "--adapter", folder, "--model", place.model, "--to", to, "--out", out, "--json")
    done = succeeded(*command).json
    bare = LlamaForCausalLM.from_pretrained(place.model)(IDS).logits.detach()
    where = (out, None) if to == "merged" else (place.model, out)
    return Exported(CAUSAL, *where, logits, bare, done)


def sparse(place, scope):  # noqa: F811
    model = sifted(LlamaForCausalLM.from_pretrained(place.model), density=0.03, scope=scope)
    train(model, "default", 1)
    return model


def low_rank(place):  # noqa: F811
    model = get_peft_model(LlamaForCausalLM.from_pretrained(place.model), LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "lora_B" in name):
            parameter.normal_()
    return model


def in_half_precision(path):
    make_model(23).bfloat16().save_pretrained(path / "half")
    model = sifted(LlamaForCausalLM.from_pretrained(path / "half"), density=0.05)
    train(model, "default", 1)
    return from_python(path, "half", CAUSAL, model)


def with_a_head(path):
    config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                         num_attention_heads=2, num_labels=3, pad_token_id=0)  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(path / "headed")
    base = LlamaForSequenceClassification.from_pretrained(path / "headed")
    model = sifted(base, density=0.05, task_type="SEQ_CLS")
    select(model, [{"input_ids": IDS, "labels": torch.tensor([0, 2])}])
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return from_python(path, "headed", "AutoModelForSequenceClassification", model)


def from_python(path, name, kind, model):
    (path / f"{name}-shira").mkdir()
    write_shira(model, path / f"{name}-shira")
    bare = getattr(transformers, kind).from_pretrained(path / name)(IDS).logits.detach()
    return Exported(kind, path / name, path / f"{name}-shira", model.eval()(IDS).logits.detach(), bare)


@pytest.fixture(scope="module")
def exported(place: Place):  # noqa: F811
    """Name -> export."""
    torch.manual_seed(0)
    return {
        "even": on_the_command_line(place, sparse(place, "tensor"), "shira", "even"),
        "uneven": on_the_command_line(place, sparse(place, "global"), "shira", "uneven"),
        "merged": on_the_command_line(place, sparse(place, "global"), "merged", "merged"),
        "lora": on_the_command_line(place, low_rank(place), "merged", "lora"),
        "half": in_half_precision(place.path),
        "head": with_a_head(place.path),
    }


@pytest.fixture(scope="module")
def read(exported, place: Place):  # noqa: F811
    """Name -> logits by a process that knows PEFT and transformers alone: as loaded, and merged there."""
    asked = {name: (one.kind, str(one.model), one.adapter and str(one.adapter)) for name, one in exported.items()}
    command = [sys.executable, "-c", READER, json.dumps(asked), str(place.path / "logits.pt")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=place.path, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return torch.load(place.path / "logits.pt")


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("even", 2e-6), ("uneven", 2e-6), ("merged", 0.0), ("lora", 1e-5), ("half", 0.0), ("head", 2e-6)],
)
def test_others_read_what_was_exported(name, tolerance, exported, read):
    one = exported[name]
    assert float((one.logits - one.bare).abs().max()) > 0.03
    for logits in read[name]:
        torch.testing.assert_close(logits, one.logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_shiras_sizes_are_filled_with_zeros(name, exported):
    folder, done = exported[name].adapter, exported[name].done
    weights = {n: t for n, t in load_file(folder / "adapter_model.safetensors").items() if n.endswith("shira_weight")}
    assert sum(len(tensor) for tensor in weights.values()) == done["stored"]
    assert sum(int((tensor != 0).sum()) for tensor in weights.values()) <= done["entries"] < done["stored"]
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "SHIRA"


def test_a_merged_model_comes_with_its_tokenizer_and_replaces_an_earlier_one(exported, place):  # noqa: F811
    one = exported["merged"]
    assert (one.model / "tokenizer.json").is_file()
    adapter = place.path / "merged-adapter"
    done = succeeded("export", "--adapter", adapter, "--model", place.model, "--out", one.model)
    assert f"{one.done['parameters']:,} parameters" in done.err


def test_what_a_form_is_not_for_is_refused(exported, place, tmp_path):  # noqa: F811
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(LlamaForCausalLM.from_pretrained(place.model), config).save_pretrained(tmp_path / "prefix")
    out = ("--model", place.model, "--out", tmp_path / "out")
    refused("export", "--adapter", tmp_path / "prefix", *out, says=["PREFIX_TUNING does not merge"])
    lora = place.path / "lora-adapter"
    refused("export", "--adapter", lora, "--to", "shira", *out, says=["is a LORA adapter", "--method sift"])
    assert not (tmp_path / "out").exists()


def convolutional():
    model = sifted(convolution_1d(), target_modules=["first"], score="magnitude")
    return model, r"'first' \(Conv1d\)"


def transposed():
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    return sifted(GPT2LMHeadModel(config), target_modules=["c_proj"], score="random"), r"c_proj' \(Conv1D\)"


def embedded():
    return sifted(llama(), target_modules=["embed_tokens"], score="random"), r"\(Embedding\)"


def biased():
    model = sifted(convolution_1d(), target_modules=["head"], biases=True, score="magnitude")
    return model, r"'head' \(bias\)"


def dense():
    return sifted(llama(), density=0.9, score="random"), "would have"


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


def test_mistakes_on_the_command_line_are_answered(exported, place, tmp_path):  # noqa: F811
    adapter = place.path / "even-adapter"
    command = ("export", "--adapter", adapter, "--model", place.model)
    refused(*command, "--out", adapter, says=["would write over the adapter"])
    refused(*command, "--to", "shirra", "--out", tmp_path / "out", says=["no form is called", "did you mean shira"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(*command, "--out", tmp_path / "mine", says=["it holds other things"])
    assert not (tmp_path / "out").exists()
