"""LoRA through PEFT, with the variants that PEFT spells as flags."""

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from holdfast.recipe import Settings
from holdfast.targets import Targets, select
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.wrapping import wrapped


class LoraOptions(Settings):
    """Of LoRA and its variants; recipes have rank and alpha at their top."""

    rank: int = Field(8, ge=1, description="of the update to each layer")
    alpha: float | None = Field(None, gt=0, description="null: twice the rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of a layer's inputs that the adapter does not see")


class Lora(Tuner):
    """Low-rank adaptation: W + alpha/rank B A, with PEFT's LoraConfig."""

    name = "lora"
    paper = "LoRA, arXiv 2106.09685"
    Options = LoraOptions
    sizes = ("rank",)
    flags: ClassVar[dict[str, Any]] = {}
    options: LoraOptions

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from peft import LoraConfig

        from holdfast.adapters.weight_norm import folded_with_words

        layers = select(model, targets)
        folded_with_words(model, layers)
        rank, alpha = self.options.rank, self.options.alpha
        return wrapped(
            model,
            LoraConfig,
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            lora_dropout=self.options.dropout,
            target_modules=sorted(layers),
            fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in layers.values()),
            **self.flags,
        )
