"""Tiny random models of the kinds that adapters are put on, with inputs for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SILENT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
SPEECH = {
    **SIZE,
    **SILENT,
    "conv_dim": (8, 8),
    "conv_stride": (3, 2),
    "conv_kernel": (5, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
    "vocab_size": 7,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "mask_time_prob": 0.0,
}
STACKS = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "vocab_size": 20,
}
TEXT = {**SIZE, "vocab_size": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 0}
PICTURE = {**SIZE, "image_size": 8, "patch_size": 4}
VITS = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "window_size": 2,
    "flow_size": 16,
    "spectrogram_bins": 9,
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "prior_encoder_num_flows": 2,
    "prior_encoder_num_wavenet_layers": 1,
    "posterior_encoder_num_wavenet_layers": 1,
    "duration_predictor_filter_channels": 8,
    "depth_separable_num_layers": 1,
    "duration_predictor_num_flows": 1,
    "layerdrop": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


@dataclass(frozen=True)
class Kind:
    """A model, what it is called with, and what of its output counts."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    output: str = "last_hidden_state"


def drawn(*shape: int) -> Tensor:
    """A fixed random tensor."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def tokens(*shape: int) -> Tensor:
    """Fixed random tokens, none of which is padding."""
    return torch.randint(4, 19, shape, generator=torch.Generator().manual_seed(6))


def of(name: str, **settings: Any) -> Callable[[], nn.Module]:
    """A model of transformers with its configuration's settings."""

    def build() -> nn.Module:
        torch.manual_seed(3)
        cls = getattr(transformers, name)
        return cls(cls.config_class(**settings)).eval()

    return build


def _waves() -> dict[str, Any]:
    return {"input_values": drawn(2, 240), "attention_mask": torch.ones(2, 240, dtype=torch.long)}


def _text() -> dict[str, Any]:
    return {"input_ids": tokens(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


def _pictures() -> dict[str, Any]:
    return {"pixel_values": drawn(2, 3, 8, 8)}


def _speech_to_text() -> dict[str, Any]:
    return {**_waves(), "decoder_input_ids": tokens(2, 5)}


SPEECHT5 = {
    **{key: value for key, value in SPEECH.items() if key not in ("num_hidden_layers", "intermediate_size")},
    **STACKS,
    "max_speech_positions": 90,
    "max_text_positions": 20,
    "num_mel_bins": 8,
    "speech_decoder_prenet_units": 8,
    "speech_decoder_postnet_units": 8,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    "positional_dropout": 0.0,
}
WHISPER = {
    **STACKS,
    "d_model": 16,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
    "dropout": 0.0,
}
FASTSPEECH = {
    "hidden_size": 16,
    "vocab_size": 20,
    "num_mel_bins": 8,
    "encoder_num_attention_heads": 2,
    "encoder_layers": 2,
    "encoder_linear_units": 24,
    "decoder_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_linear_units": 24,
    "speech_decoder_postnet_units": 8,
    "speech_decoder_postnet_layers": 2,
    "duration_predictor_channels": 8,
    "energy_predictor_channels": 8,
    "pitch_predictor_channels": 8,
}
KINDS = {
    "wav2vec2": Kind(of("Wav2Vec2Model", **SPEECH, do_stable_layer_norm=True), _waves),
    "hubert": Kind(of("HubertModel", **SPEECH), _waves),
    "wavlm": Kind(of("WavLMModel", **SPEECH), _waves),
    "data2vec-audio": Kind(
        of("Data2VecAudioModel", **{**SPEECH, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}), _waves
    ),
    "unispeech": Kind(of("UniSpeechModel", **SPEECH), _waves),
    "wav2vec2-bert": Kind(
        of(
            "Wav2Vec2BertModel",
            **SIZE,
            **SILENT,
            feature_projection_input_dim=10,
            conformer_conv_dropout=0.0,
            feat_proj_dropout=0.0,
            mask_time_prob=0.0,
        ),
        lambda: {"input_features": drawn(2, 12, 10), "attention_mask": torch.ones(2, 12, dtype=torch.long)},
    ),
    "whisper": Kind(
        of("WhisperModel", **WHISPER),
        lambda: {"input_features": drawn(2, 8, 20), "decoder_input_ids": tokens(2, 5)},
    ),
    "speecht5": Kind(of("SpeechT5ForSpeechToText", **SPEECHT5), _speech_to_text, "logits"),
    "fastspeech2_conformer": Kind(of("FastSpeech2ConformerModel", **FASTSPEECH), _text, "spectrogram"),
    "vits": Kind(of("VitsModel", **VITS), _text, "waveform"),
    "bert": Kind(of("BertModel", **TEXT), _text),
    "roberta": Kind(of("RobertaModel", **{**TEXT, "pad_token_id": 1}), _text),
    "albert": Kind(of("AlbertModel", **TEXT, embedding_size=16), _text),
    "mixtral": Kind(
        of("MixtralForCausalLM", **SIZE, vocab_size=20, num_key_value_heads=2, num_local_experts=2), _text, "logits"
    ),
    "llama": Kind(of("LlamaForCausalLM", **SIZE, vocab_size=20, pad_token_id=0), _text, "logits"),
    "gpt2": Kind(
        of(
            "GPT2LMHeadModel",
            vocab_size=20,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        ),
        _text,
        "logits",
    ),
    "t5": Kind(
        of(
            "T5ForConditionalGeneration",
            vocab_size=20,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            decoder_start_token_id=0,
            dropout_rate=0.0,
        ),
        lambda: {**_text(), "decoder_input_ids": tokens(2, 5)},
        "logits",
    ),
    "opt": Kind(
        of(
            "OPTForCausalLM",
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
            dropout=0.0,
        ),
        _text,
        "logits",
    ),
    "vit": Kind(of("ViTModel", **PICTURE), _pictures),
    "clip": Kind(of("CLIPVisionModel", **PICTURE), _pictures),
}


def run(model: Any, kind: Kind, **changed: Any) -> Tensor:
    """The output that counts, from a fixed random state: speech synthesis draws noise."""
    torch.manual_seed(0)
    found = model(**{**kind.inputs(), **changed})
    return getattr(found, kind.output)


def stirred(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every trainable parameter moved, so that the adapter does something everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return model
