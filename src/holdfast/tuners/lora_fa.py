"""LoRA with its random half frozen, through PEFT."""

from typing import Any

from torch import nn

from holdfast.targets import Targets
from holdfast.tuners.lora import Lora


class LoraFa(Lora):
    """LoRA of which only the half that starts at zero is trained: B of W + alpha/rank B A.

    The shift is linear in what is trained, so curvature of the adapter's parameters at their start stays exact where
    that of the weights is. An embedding's LoRA starts with A at zero and B random: there A is trained.
    """

    name = "lora-fa"
    paper = "LoRA-FA, arXiv 2308.03303"

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        tuned = super().prepare(model, targets)
        for layer in tuned.modules():
            for factor in ("lora_A", "lora_embedding_B"):
                for adapter, half in getattr(layer, factor, {}).items():
                    _freeze(layer, factor, adapter)
                    half.requires_grad_(False)
        return tuned


def _freeze(layer: Any, factor: str, adapter: str) -> None:
    """Tell PEFT: it turns a bare requires_grad=False back on at its next `set_adapter`."""
    frozen = dict(getattr(layer, "frozen_peft_weight_names", {}))
    frozen[adapter] = (*frozen.get(adapter, ()), factor)
    layer.frozen_peft_weight_names = frozen
