"""Every tuner on other architectures: which layers it takes, where it starts, and what it refuses."""

import re

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    T5Config,
    ViTConfig,
    ViTForImageClassification,
)

from holdfast import HoldfastError, catalogue
from holdfast.pretrained import adapters_off
from holdfast.targets import ALL_LINEAR
from holdfast.tuners.options import chosen
from holdfast.tuners.sizing import trained

SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
MODELS = {
    "llama": lambda: AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=20, intermediate_size=16, **SMALL)),
    "gpt2": lambda: AutoModelForCausalLM.from_config(GPT2Config(vocab_size=20, n_embd=8, n_head=2, n_layer=2)),
    "opt": lambda: AutoModelForCausalLM.from_config(
        OPTConfig(vocab_size=20, ffn_dim=16, word_embed_proj_dim=8, max_position_embeddings=32, **SMALL)
    ),
    "bert": lambda: AutoModelForSequenceClassification.from_config(
        BertConfig(vocab_size=20, intermediate_size=16, **SMALL)
    ),
    "t5": lambda: AutoModelForSeq2SeqLM.from_config(
        T5Config(vocab_size=20, d_model=8, d_ff=16, d_kv=4, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "vit": lambda: ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, intermediate_size=16, **SMALL)),
}
SCALED = {  # name endings of what the paper scales at the output, and at the input
    "llama": ({"k_proj", "v_proj"}, {"down_proj"}),
    "gpt2": ({"c_attn"}, {"mlp.c_proj"}),
    "opt": ({"k_proj", "v_proj"}, {"fc2"}),
    "bert": ({"key", "value"}, {"output.dense"}),
    "t5": ({"k", "v"}, {"wo"}),
    "vit": ({"k_proj", "v_proj"}, {"fc2"}),
}


def built(name):
    """The tiny model, in eval mode."""
    torch.manual_seed(0)
    return MODELS[name]().eval()


def inputs(name):
    """One batch for it."""
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))}
    ids = torch.arange(2, 14).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | ({"decoder_input_ids": ids} if name == "t5" else {})


def said(model, name):
    """Its logits."""
    with torch.no_grad():
        return model(**inputs(name)).logits


@pytest.mark.parametrize("name", SCALED)
def test_the_layers_that_ia3_scales(name):
    model = chosen(catalogue.tuner("ia3"), {}).prepare(built(name), ALL_LINEAR)
    found = {
        n: layer for n, layer in model.named_modules() if hasattr(layer, "ia3_l") and hasattr(layer, "base_layer")
    }
    ends = [(name, layer.is_feedforward) for name, layer in found.items()]
    outputs, firsts = SCALED[name]
    assert {end for end in outputs if any(n.endswith(f".{end}") for n, first in ends if not first)} == outputs
    assert all(n.endswith(tuple(f".{end}" for end in outputs)) for n, first in ends if not first)
    assert all(n.endswith(tuple(f".{end}" for end in firsts)) for n, first in ends if first)
    assert not any("attention.output" in n for n, _ in ends)
    blocks = 2  # an encoder's and a decoder's, of T5
    assert sum(first for _, first in ends) == blocks


def test_layers_that_are_named_are_scaled_by_their_kind():
    model = chosen(catalogue.tuner("ia3"), {}).prepare(built("llama"), ["layers.1.mlp.down_proj", "q_proj"])
    found = {n: layer.is_feedforward for n, layer in model.named_modules() if hasattr(layer, "is_feedforward")}
    assert {re.sub(r".*layers\.", "", name): first for name, first in found.items()} == {
        "0.self_attn.q_proj": False, "1.self_attn.q_proj": False, "1.mlp.down_proj": True,
    }  # fmt: skip


def test_names_that_say_nothing():
    with pytest.raises(HoldfastError, match="by which keys, values or feed-forward activations are known"):
        chosen(catalogue.tuner("ia3"), {}).prepare(torch.nn.Sequential(torch.nn.Linear(2, 2)), ALL_LINEAR)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "vit"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_prefixes(name, tokens):
    before = said(built(name), name)
    model = chosen(catalogue.tuner("prefix"), {"tokens": tokens}).prepare(built(name), ALL_LINEAR).eval()
    after = said(model, name)
    assert after.shape == before.shape
    assert (after - before).abs().max() > 1e-6
    with adapters_off(model):
        torch.testing.assert_close(said(model, name), before, rtol=0, atol=0)
    torch.testing.assert_close(said(model, name), after, rtol=0, atol=0)


def test_a_prefix_before_no_attention():
    with pytest.raises(HoldfastError, match="ViTForImageClassification is none that PEFT knows"):
        chosen(catalogue.tuner("prefix"), {}).prepare(built("vit"), ALL_LINEAR)
    with pytest.raises(HoldfastError, match="stands before a transformer's attention, and Linear is none"):
        chosen(catalogue.tuner("prefix"), {}).prepare(torch.nn.Linear(2, 2), ALL_LINEAR)


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "vit"])
def test_biases(name):
    model = built(name)
    biases = {n for n, parameter in model.named_parameters() if n.endswith("bias")}
    tuned = chosen(catalogue.tuner("bitfit"), {}).prepare(model, ALL_LINEAR)
    assert {n for n, parameter in tuned.named_parameters() if parameter.requires_grad} == biases
    few = chosen(catalogue.tuner("bitfit"), {"of": "targets"}).prepare(built(name), ALL_LINEAR)
    assert 0 < trained(few) < trained(tuned)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_models_without_biases(name):
    with pytest.raises(HoldfastError, match="the model has no biases to train"):
        chosen(catalogue.tuner("bitfit"), {}).prepare(built(name), ALL_LINEAR)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert"])
@pytest.mark.parametrize("method", [name for name in catalogue.names("tuner") if name != "prefix"])
def test_the_function_is_the_model_s_own_at_the_start(method, name):
    if method == "bitfit" and name == "llama":
        pytest.skip("it has no biases")
    before = said(built(name), name)
    model = chosen(catalogue.tuner(method), {}).prepare(built(name), ALL_LINEAR).eval()
    torch.testing.assert_close(said(model, name), before, rtol=0, atol=1e-7)
    assert 0 < trained(model) <= sum(parameter.numel() for parameter in model.parameters())
