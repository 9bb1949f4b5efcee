"""LoRA through PEFT, with the variants that PEFT spells as flags."""

from typing import Any, ClassVar

from torch import nn

from holdfast.targets import Targets, select
from holdfast.tuners.tuner import Tuner


class Lora(Tuner):
    """Low-rank adaptation: W + alpha/rank B A, with PEFT's LoraConfig."""

    name = "lora"
    paper = "LoRA, arXiv 2106.09685"
    flags: ClassVar[dict[str, Any]] = {}

    def prepare(self, model: nn.Module, targets: Targets, rank: int, alpha: float | None) -> nn.Module:
        from peft import LoraConfig, TaskType, get_peft_model

        from holdfast.adapters.weight_norm import fold_weight_norm, say_folded

        layers = sorted(select(model, targets))
        say_folded(fold_weight_norm(model, layers))
        causal = hasattr(model, "generate")
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,  # type: ignore[arg-type]  # PEFT takes fractions too
            target_modules=layers,
            task_type=TaskType.CAUSAL_LM if causal else None,
            fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in select(model, targets).values()),
            **self.flags,
        )
        return get_peft_model(model, config)
