"""Which layers a PEFT method adapts by default in speech and vision models, which PEFT has no entries for.

The names are those of transformers 5, which renamed many. As PEFT's own entries do, LoRA and its like adapt the query
and value projections (arXiv 2106.09685, section 4.2), or a ConvNeXt's pointwise layers; IA3 scales keys, values and
what goes into the feed-forward sublayer's last layer (arXiv 2205.05638).
"""

from dataclasses import dataclass
from typing import Any

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn


@dataclass(frozen=True)
class Defaults:
    """Name endings: what additive methods adapt, what IA3 scales the output of, and what it scales the input of."""

    layers: tuple[str, ...]
    scaled: tuple[str, ...] = ()
    feed_forward: tuple[str, ...] = ()


_PROJECTED = ("q_proj", "v_proj")
_SPEECH = Defaults(_PROJECTED, ("k_proj", "v_proj", "output_dense"), ("output_dense",))
_CONFORMER = Defaults(("linear_q", "linear_v"), ("linear_k", "linear_v", "output_dense"), ("output_dense",))
_TWO_LAYERS = Defaults(_PROJECTED, ("k_proj", "v_proj", "fc2"), ("fc2",))
_NAMED = Defaults(("query", "value"), ("key", "value", "output.dense"), ("output.dense",))
_POINTWISE = Defaults(("pwconv1", "pwconv2"))

# transformers' model_type -> defaults.
DEFAULTS: dict[str, Defaults] = {
    **dict.fromkeys(
        ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "sew", "speecht5"), _SPEECH
    ),
    **dict.fromkeys(("wav2vec2-bert", "wav2vec2-conformer"), _CONFORMER),
    **dict.fromkeys(
        (
            "whisper",
            "speech_to_text",
            "moonshine",
            "audio-spectrogram-transformer",
            "vit",
            "vit_mae",
            "deit",
            "beit",
            "dinov2",
            "dinov2_with_registers",
            "swin",
            "clip",
            "clip_vision_model",
            "siglip",
            "siglip_vision_model",
        ),
        _TWO_LAYERS,
    ),
    "dinov3_vit": Defaults(_PROJECTED, ("k_proj", "v_proj", "down_proj"), ("down_proj",)),
    "vits": Defaults(_PROJECTED, ("k_proj", "v_proj")),  # its feed-forward sublayers are convolutions over time
    "fastspeech2_conformer": Defaults(("linear_q", "linear_v"), ("linear_k", "linear_v")),
    "seamless_m4t": Defaults((*_PROJECTED, "linear_q", "linear_v"), ("k_proj", "v_proj", "linear_k", "linear_v")),
    "seamless_m4t_v2": Defaults((*_PROJECTED, "linear_q", "linear_v"), ("k_proj", "v_proj", "linear_k", "linear_v")),
    **dict.fromkeys(("data2vec-vision", "swinv2"), _NAMED),
    **dict.fromkeys(("convnext", "convnextv2"), _POINTWISE),
}
# Methods whose PEFT entries are something else than linear layers to add to.
OTHERS = ("IA3", "LN_TUNING", "BEFT", "OSF", "TRAINABLE_TOKENS", "VBLORA", "POLY", "XLORA")


def targets_for(model: nn.Module) -> list[str] | None:
    """Name endings of the layers to adapt in a model, as `target_modules` takes them.

    PEFT's own where it has an entry for the model's type; None where neither has.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    lora: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA]
    found = lora.target_module_mapping.get(model_type)
    if found is not None:
        return None if isinstance(found, str) else list(found)
    return list(DEFAULTS[model_type].layers) if model_type in DEFAULTS else None


def fill_in() -> None:
    """Give PEFT the entries it lacks; its own stay as they are."""
    for method, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items():
        mapping = getattr(tuner, "target_module_mapping", None)
        if mapping and method.name not in OTHERS:
            for model_type, defaults in DEFAULTS.items():
                mapping.setdefault(model_type, list(defaults.layers))
    for model_type, defaults in DEFAULTS.items():
        if defaults.scaled:
            TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.setdefault(model_type, list(defaults.scaled))
            TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.setdefault(model_type, list(defaults.feed_forward))
