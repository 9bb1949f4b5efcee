"""Which models shift their labels: all that have transformers' causal loss, whatever they see beside text."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import VOCABULARY, bert, initialised, llama
from networks import NETWORKS
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertForMaskedLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from holdfast.likelihood import Items, is_causal, summed_loss

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT: dict[str, Any] = SIZES | {"vocab_size": VOCABULARY, "num_key_value_heads": 1, "pad_token_id": 0}
VISION: dict[str, Any] = SIZES | {"image_size": 8, "patch_size": 4}


def llava() -> nn.Module:
    """A Llama that sees through a CLIP."""
    seen, text = CLIPVisionConfig(**VISION), LlamaConfig(**TEXT)
    config = LlavaConfig(vision_config=seen, text_config=text, image_token_index=VOCABULARY - 1)
    return initialised(LlavaForConditionalGeneration(config))


def gemma3() -> nn.Module:
    """A Gemma that sees through a SigLIP."""
    seen, text = SiglipVisionConfig(**VISION), Gemma3TextConfig(**TEXT, head_dim=4, sliding_window=4)
    config = Gemma3Config(vision_config=seen, text_config=text, mm_tokens_per_image=4, image_token_id=VOCABULARY - 1)
    return initialised(Gemma3ForConditionalGeneration(config))


def t5() -> nn.Module:
    """Reads one sequence and writes another."""
    config = T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("build", [llava, gemma3])
def test_the_loss_of_a_model_that_sees_is_that_of_transformers(build: Callable[[], nn.Module]) -> None:
    model, network = build(), NETWORKS["llama"]
    batch = {name: value for name, value in network.collate(network.rows).items() if name != "position_ids"}
    batch["input_ids"] = batch["input_ids"].clamp_max(VOCABULARY - 2)  # the last stands for an image
    reader = Items(model, None)
    with torch.no_grad():
        likelihood = reader.read(batch)
        theirs = model(**batch).loss
    assert (reader.shifted, reader.item) == (True, "token")
    assert reader.items_in(batch) == likelihood.items
    assert_close(likelihood.loss() / likelihood.items, theirs.to(likelihood.loss().dtype), rtol=1e-6, atol=0)
    assert_close(summed_loss(reader.run(batch)), likelihood.loss(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("importable", [True, False])
@pytest.mark.parametrize(
    ("build", "causal"), [(llava, True), (llama, True), (t5, False), (lambda: bert(BertForMaskedLM), False)]
)
def test_who_shifts(
    build: Callable[[], nn.Module], causal: bool, importable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    if not importable:
        monkeypatch.setitem(sys.modules, "transformers.loss.loss_utils", None)
    assert is_causal(model) == causal
