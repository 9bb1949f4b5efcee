"""Default targets of speech and vision models exist in the models of the transformers that is installed."""

from typing import Any

import pytest
import torch
import transformers
from peft import IA3Config, LoHaConfig, LoraConfig, VeraConfig, get_peft_model
from pretrained_kinds import KINDS, PICTURE, SIZE, SPEECH, SPEECHT5, VITS, WHISPER
from torch import nn

from holdfast.adapters.defaults import DEFAULTS, targets_for

SPEECH_ONLY = {k: v for k, v in SPEECH.items() if k not in ("feat_extract_norm", "vocab_size")}
STAGES: dict[str, Any] = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
PAIR = {"text_config": {**SIZE, "vocab_size": 20}, "vision_config": PICTURE}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}
SEAMLESS = {
    "hidden_size": 16,
    "vocab_size": 20,
    "speech_encoder_layers": 1,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_ffn_dim": 24,
    "t2u_decoder_ffn_dim": 24,
    "t2u_encoder_attention_heads": 2,
    "t2u_decoder_attention_heads": 2,
    "feature_projection_input_dim": 8,
    "upsample_initial_channel": 16,
    "unit_hifi_gan_vocab_size": 20,
    "t2u_vocab_size": 20,
    "lang_embed_dim": 4,
    "spkr_embed_dim": 4,
    "unit_embed_dim": 16,
}
SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "sew"), SPEECH_ONLY),
    "data2vec-audio": {**SPEECH_ONLY, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "wav2vec2-conformer": SPEECH_ONLY,
    "wav2vec2-bert": {**SIZE, "feature_projection_input_dim": 10},
    "speecht5": SPEECHT5,
    "whisper": WHISPER,
    "vits": VITS,
    "speech_to_text": {
        "d_model": 16,
        **{k: v for k, v in SEAMLESS.items() if k.startswith(("encoder_", "decoder_")) or k == "vocab_size"},
        "conv_channels": 8,
        "input_feat_per_channel": 8,
    },
    "moonshine": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "vocab_size": 20,
    },
    "audio-spectrogram-transformer": {**SIZE, "max_length": 32, "num_mel_bins": 32},
    "swin": {**STAGES, "window_size": 2},
    "swinv2": {**STAGES, "window_size": 2},
    "clip": PAIR,
    "siglip": PAIR,
    "convnext": CONVNEXT,
    "convnextv2": CONVNEXT,
    "seamless_m4t": SEAMLESS,
    "seamless_m4t_v2": SEAMLESS,
}


def small(model_type: str) -> nn.Module:
    """A model of the type, without numbers."""
    if model_type == "fastspeech2_conformer":
        return KINDS[model_type].build()
    settings = SETTINGS.get(model_type, PICTURE)
    with torch.device("meta"):
        config = transformers.AutoConfig.for_model(model_type, **settings)
        return transformers.AutoModel.from_config(config)


def attentions(model: nn.Module) -> int:
    """How many projections to queries and values a model has, by the shape of its names."""
    leaves = [name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sum(leaf in ("q_proj", "v_proj", "linear_q", "linear_v", "query", "value") for leaf in leaves)


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_lora_and_ia3_find_their_layers_untold(model_type: str) -> None:
    model = small(model_type)
    expected = attentions(model) or 2 * sum(CONVNEXT["depths"])
    targets = targets_for(model)
    assert targets is not None
    adapted = get_peft_model(model, LoraConfig(r=2), low_cpu_mem_usage=True)
    assert len(adapted.base_model.targeted_module_names) == expected
    for ending in targets:
        assert any(name.endswith(f".{ending}") for name in adapted.base_model.targeted_module_names)
    if not DEFAULTS[model_type].scaled:
        return
    scaled = get_peft_model(adapted.unload(), IA3Config(), low_cpu_mem_usage=True)
    for ending in DEFAULTS[model_type].scaled:
        assert any(name.endswith(f".{ending}") for name in scaled.base_model.targeted_module_names)


@pytest.mark.parametrize("config", [LoHaConfig, VeraConfig])
def test_other_methods_have_them_too(config: Any) -> None:
    model = get_peft_model(small("hubert"), config(r=2), low_cpu_mem_usage=config is LoHaConfig)
    assert len(model.base_model.targeted_module_names) == 4


def test_what_peft_says_itself_stays() -> None:
    assert targets_for(KINDS["gpt2"].build()) == ["c_attn"]
    assert targets_for(KINDS["bert"].build()) == ["query", "value"]
    assert targets_for(nn.Linear(2, 2)) is None
