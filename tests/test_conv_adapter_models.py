"""ConvAdapter within models: padding is nothing to it, and a decoder does not see the future through it."""

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from pretrained_kinds import KINDS, drawn, run, stirred, tokens
from torch import Tensor
from torch.testing import assert_close

from holdfast.adapters import BottleneckConfig, ConvAdapterConfig
from holdfast.errors import HoldfastError

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}  # float32, sums of other lengths
PLACES = ["layer", "attention", "parallel"]


def adapted(name: str, **settings: Any) -> PeftModel:
    """A model whose adapter does something."""
    return stirred(get_peft_model(KINDS[name].build(), ConvAdapterConfig(**settings)))


SPEECH = ["wav2vec2", "hubert", "wavlm", "unispeech"]  # Data2Vec's own positional convolutions run over padding


@pytest.mark.parametrize("name", SPEECH)
@pytest.mark.parametrize("position", PLACES)
def test_padded_speech_is_heard_as_it_is_alone(name: str, position: str) -> None:
    model = adapted(name, position=position)
    wave = drawn(1, 240)
    with torch.no_grad():
        alone = model(input_values=wave, attention_mask=torch.ones(1, 240, dtype=torch.long)).last_hidden_state
        for after in (1, 63, 400):
            batch = torch.zeros(2, 240 + after)
            batch[0, :240], batch[1] = wave, drawn(240 + after)
            mask = torch.ones(2, 240 + after, dtype=torch.long)
            mask[0, 240:] = 0
            found = model(input_values=batch, attention_mask=mask).last_hidden_state[:1, : alone.shape[1]]
            assert_close(found, alone, **CLOSE)


TEXT = [(name, way) for name in ("bert", "roberta", "t5", "llama", "gpt2", "opt") for way in ("sdpa", "eager")]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "attention"), [*TEXT, ("llama", "flex_attention"), ("bert", "flex_attention")])
@pytest.mark.parametrize("position", PLACES)
def test_padded_text_is_read_as_it_is_alone(name: str, position: str, attention: str) -> None:
    model = adapted(name, position=position)
    if name != "t5":
        model.get_base_model().set_attn_implementation(attention)
    kind, ids = KINDS[name], tokens(1, 9)
    more = {"decoder_input_ids": tokens(1, 5)} if name == "t5" else {}
    with torch.no_grad():
        alone = getattr(model(input_ids=ids, attention_mask=torch.ones_like(ids), **more), kind.output)
        sides = [(0, 1), (0, 7)] if name in ("bert", "roberta", "t5") else [(0, 6), (1, 0), (7, 0)]
        for before, after in sides:
            batch = torch.full((2, before + 9 + after), 1)
            batch[0, before : before + 9], batch[1] = ids[0], tokens(before + 9 + after)
            mask = torch.ones_like(batch)
            mask[0, :before], mask[0, before + 9 :] = 0, 0
            given: dict[str, Any] = {"input_ids": batch, "attention_mask": mask}
            if name in ("llama", "gpt2"):  # OPT tells positions from the mask
                given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
            if name == "t5":
                given["decoder_input_ids"] = torch.cat([more["decoder_input_ids"], tokens(1, 5).flip(1)])
            found = getattr(model(**given), kind.output)[:1]
            assert_close(found if name == "t5" else found[:, before : before + 9], alone, **CLOSE)


def test_masks_of_unknown_forms_are_refused() -> None:
    model = adapted("bert")
    layer = model.get_base_model().encoder.layer[0]
    with pytest.raises(HoldfastError, match=r"mask is a dict(.|\n)*attn_implementation"):
        layer(drawn(1, 4, 16), attention_mask={"full": None})


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5", "whisper", "speecht5"])
@pytest.mark.parametrize("position", ["layer", "parallel"])
@pytest.mark.parametrize("pool", ["mean", "running"])
def test_a_decoder_does_not_see_the_future(name: str, position: str, pool: str) -> None:
    kind = KINDS[name]
    model = adapted(name, position=position, se_pool=pool)
    key = "decoder_input_ids" if "decoder_input_ids" in kind.inputs() else "input_ids"
    ids = kind.inputs()[key]
    with torch.no_grad():
        before = run(model, kind)
        for t in (1, ids.shape[1] - 1):
            changed = ids.clone()
            changed[:, t:] = (changed[:, t:] - 3) % 15 + 4
            assert_close(run(model, kind, **{key: changed})[:, :t], before[:, :t], **CLOSE)
        changed = ids.clone()
        changed[:, 0] = (changed[:, 0] - 3) % 15 + 4
        assert float((run(model, kind, **{key: changed}) - before)[:, -1].abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "whisper"])
def test_what_would_show_a_decoder_the_future_is_refused(name: str) -> None:
    with pytest.raises(HoldfastError, match="show the future"):
        get_peft_model(KINDS[name].build(), ConvAdapterConfig(causal=False))
    with pytest.raises(HoldfastError, match="running"):
        get_peft_model(KINDS[name].build(), ConvAdapterConfig(se_pool="attention"))


def test_encoders_of_encoder_decoders_look_both_ways() -> None:
    model = adapted("whisper")
    blocks = {n: m.causal for n, m in model.named_modules() if type(m).__name__ == "ConvBlock"}
    assert {".encoder." in name: causal for name, causal in blocks.items()} == {True: False, False: True}


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_generation_is_the_greedy_choice_over_whole_sequences(name: str) -> None:
    kind = KINDS[name]
    model = adapted(name)
    given = {key: value for key, value in kind.inputs().items() if key != "decoder_input_ids"}
    made = model.generate(**given, max_new_tokens=5, do_sample=False)
    key, start = ("decoder_input_ids", 1) if name == "t5" else ("input_ids", 9)
    assert made.shape[1] > start + 1
    more = {"attention_mask": torch.ones_like(made)} if key == "input_ids" else {}
    with torch.no_grad():
        picked: Tensor = model(**{**given, **more, key: made}).logits.argmax(-1)
    going = torch.ones(len(made), dtype=torch.bool)
    for t in range(start, made.shape[1]):
        assert torch.equal(made[going, t], picked[going, t - 1])
        going &= made[:, t] != model.generation_config.eos_token_id


def test_a_cache_is_refused_in_words() -> None:
    model = adapted("llama")
    with pytest.raises(HoldfastError, match="use_cache"):
        model.generate(**KINDS["llama"].inputs(), max_new_tokens=3, use_cache=True)
    plain = get_peft_model(KINDS["llama"].build(), BottleneckConfig(style="houlsby"))
    stirred(plain)
    given = KINDS["llama"].inputs()
    slow = plain.generate(**given, max_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(plain.generate(**given, max_new_tokens=5, do_sample=False, use_cache=True), slow)


def test_any_modules_can_be_named_and_a_convolution_is_one() -> None:
    model = KINDS["wav2vec2"].build()
    pattern = r"feature_extractor\.conv_layers\.\d+\.conv"
    model = get_peft_model(model, ConvAdapterConfig(target_modules=pattern, hidden=4))
    kind = KINDS["wav2vec2"]
    with torch.no_grad():
        base = run(KINDS["wav2vec2"].build().requires_grad_(False), kind)
        assert_close(run(model, kind), base, rtol=0, atol=0)
        assert not torch.equal(run(stirred(model), kind), base)


def test_some_layers_only_and_one_block_for_all() -> None:
    kind = KINDS["bert"]
    some = get_peft_model(kind.build(), ConvAdapterConfig(layers_to_transform=[1]))
    assert [n for n, m in some.named_modules() if type(m).__name__ == "ConvAdapterLayer"] == [
        "base_model.model.encoder.layer.1"
    ]
    shared = get_peft_model(kind.build(), ConvAdapterConfig(shared=True))
    one = sum(p.numel() for p in some.parameters() if p.requires_grad)
    assert sum(p.numel() for p in shared.parameters() if p.requires_grad) == one


def test_a_model_without_layers_is_refused_in_words() -> None:
    with pytest.raises(HoldfastError, match="target_modules"):
        get_peft_model(torch.nn.Sequential(torch.nn.Linear(3, 3)), ConvAdapterConfig())
