"""Bottleneck adapters: the equation, the counts of the papers, and where they stand."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from pretrained_kinds import KINDS, SIZE, drawn, stirred, tokens
from torch import nn
from torch.testing import assert_close
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, Wav2Vec2Config, Wav2Vec2Model

from holdfast.adapters import BottleneckConfig
from holdfast.adapters.bottleneck_block import BottleneckBlock
from holdfast.errors import HoldfastError
from holdfast.tuners.bottleneck import Bottleneck
from holdfast.tuners.sizing import by_component


def test_the_block_is_its_equation() -> None:
    torch.manual_seed(0)
    made = BottleneckBlock(8, BottleneckConfig(width=3, init="torch", scale=0.5, activation="gelu", norm="layer"))
    x = drawn(2, 5, 8)
    down, up = made.down, made.up
    inner = nn.functional.gelu(nn.functional.layer_norm(x, (8,)) @ down.weight.T + down.bias)
    assert_close(made(x), 0.5 * (inner @ up.weight.T + up.bias))


def test_the_papers_count_over_a_large_speech_encoder() -> None:
    settings = Wav2Vec2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8)
    with torch.device("meta"):
        model = Wav2Vec2Model(settings)
    config = BottleneckConfig(style="layer", width=512)
    found = by_component(get_peft_model(model, config, low_cpu_mem_usage=True), Bottleneck())
    assert sum(found.values()) == 24 * 1_050_112 == 25_202_688
    assert found == {"down": 24 * (1024 * 512 + 512), "up": 24 * (512 * 1024 + 1024)}


@pytest.mark.parametrize(("reduction", "inner"), [(4, 4), (16, 1), (64, 1)])
def test_width_by_reduction(reduction: int, inner: int) -> None:
    assert BottleneckBlock(16, BottleneckConfig(reduction=reduction)).down.out_features == inner


def by_hand(style: str, layer: Any, blocks: Any, h: torch.Tensor, rotary: Any) -> torch.Tensor:
    """A Llama layer with blocks, written out."""
    attended = layer.self_attn(
        hidden_states=layer.input_layernorm(h), attention_mask=None, position_embeddings=rotary
    )[0]
    if style == "houlsby":
        attended = attended + blocks["attention"](attended)
    h = h + attended
    x = layer.post_attention_layernorm(h)
    y = layer.mlp(x)
    if style in ("houlsby", "pfeiffer"):
        y = y + blocks["feed_forward"](y)
    if style == "parallel":
        y = y + blocks["parallel"](x)
    h = h + y
    return h + blocks["layer"](h) if style == "layer" else h


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer", "parallel", "layer"])
def test_places_of_a_pre_norm_model(style: str) -> None:
    torch.manual_seed(0)
    bare = LlamaModel(LlamaConfig(**SIZE, vocab_size=20)).eval()
    model = stirred(get_peft_model(bare, BottleneckConfig(style=style, width=3)))
    ids = tokens(2, 6)
    with torch.no_grad():
        found = model(input_ids=ids).last_hidden_state
        inner = model.get_base_model()
        blocks = [layer.bottleneck_blocks["default"] for layer in inner.layers]
        h = inner.embed_tokens(ids)
        rotary = inner.rotary_emb(h, torch.arange(6)[None])
        plain = model.unload()
        for layer, block in zip(plain.layers, blocks, strict=True):
            h = by_hand(style, layer, block, h, rotary)
        assert_close(found, plain.norm(h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
def test_places_of_a_post_norm_model(style: str) -> None:
    torch.manual_seed(0)
    settings = BertConfig(**SIZE, vocab_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = stirred(get_peft_model(BertModel(settings).eval(), BottleneckConfig(style=style, width=3)))
    ids = tokens(2, 6)
    with torch.no_grad():
        found = model(input_ids=ids).last_hidden_state
        blocks = [layer.bottleneck_blocks["default"] for layer in model.get_base_model().encoder.layer]
        plain = model.unload()
        h = plain.embeddings(input_ids=ids)
        for layer, block in zip(plain.encoder.layer, blocks, strict=True):
            y = layer.attention.output.dense(layer.attention.self(h)[0])
            y = y + block["attention"](y) if style == "houlsby" else y
            h = layer.attention.output.LayerNorm(h + y)
            y = layer.output.dense(layer.intermediate(h))
            y = y + (block["feed_forward"](y) if style == "houlsby" else block["parallel"](h))
            h = layer.output.LayerNorm(h + y)
        assert_close(found, h, rtol=1e-5, atol=1e-6)


def test_two_adapters_of_different_places_on_one_model() -> None:
    kind = KINDS["bert"]
    model = get_peft_model(kind.build(), BottleneckConfig(style="houlsby", width=3))
    model.add_adapter("beside", BottleneckConfig(style="parallel", width=2))
    model.add_adapter("after", BottleneckConfig(style="layer", width=2))
    with torch.no_grad():
        outputs = []
        for name in ("default", "beside", "after"):
            model.set_adapter(name)
            stirred(model)
            outputs.append(model(**kind.inputs()).last_hidden_state)
        model.base_model.set_adapter(["beside", "after"])
        outputs.append(model(**kind.inputs()).last_hidden_state)
        for number, name in enumerate(("default", "beside", "after")):
            model.set_adapter(name)
            assert_close(model(**kind.inputs()).last_hidden_state, outputs[number], rtol=0, atol=0)
    for one in range(4):
        for other in range(one):
            assert not torch.equal(outputs[one], outputs[other])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": "pfeifer"}, "pfeiffer"),
        ({"width": 0}, "width"),
        ({"scale": "learnt"}, "learned"),
        ({"reduction": 0}, "reduction"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        BottleneckConfig(**settings)


def test_a_layer_of_unknown_form_is_refused_in_words() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4)})
    with pytest.raises(HoldfastError, match=r"no feed forward sublayer(.|\n)*'layer'"):
        get_peft_model(model, BottleneckConfig(target_modules=["a"]))
