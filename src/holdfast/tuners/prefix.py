"""Trained keys and values before every sequence, through PEFT."""

from typing import Any

from pydantic import Field
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.recipe import Settings
from holdfast.targets import ALL_LINEAR, Targets
from holdfast.tuners.tuner import Tuner


class PrefixOptions(Settings):
    """Of prefix tuning."""

    tokens: int = Field(16, ge=1, description="length of the prefix")
    hidden: int | None = Field(None, ge=1, description="width of a network that makes the prefix while it trains")


class Prefix(Tuner):
    """Each attention layer sees `tokens` trained keys and values before the sequence's own.

    It moves no weight. A prefix is there from the first step on and changes what the model says, so the loss starts
    higher than the model's own; with a `hidden` network it trains more steadily (the paper's section 4.3).
    """

    name = "prefix"
    paper = "Prefix-tuning, arXiv 2101.00190"
    Options = PrefixOptions
    sizes = ("tokens",)
    shifts = False
    options: PrefixOptions

    @property
    def positions(self) -> int:
        return self.options.tokens

    def component(self, name: str) -> str:
        return "network" if ".transform." in name else "prefix"

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from peft import PrefixTuningConfig, get_peft_model

        if targets != ALL_LINEAR:
            raise HoldfastError(
                f"--targets {targets}: a prefix stands before every attention layer", remedy="leave them out"
            )
        hidden = self.options.hidden
        config = PrefixTuningConfig(
            num_virtual_tokens=self.options.tokens,
            prefix_projection=hidden is not None,
            encoder_hidden_size=hidden,  # type: ignore[arg-type]  # PEFT's default is None
            task_type=_task(model),
        )
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # PEFT can't tell the attention's sizes from the configuration
            raise HoldfastError(
                f"PEFT can't put a prefix on {type(model).__name__}: {' '.join(str(error).split())}",
                remedy="another --method",
            ) from error


def _task(model: Any) -> Any:
    """PEFT decides by it how a prefix is given to the model."""
    from peft import TaskType

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return TaskType.SEQ_2_SEQ_LM
    if hasattr(model, "generate"):
        return TaskType.CAUSAL_LM
    ends = {"ForSequenceClassification": TaskType.SEQ_CLS, "ForTokenClassification": TaskType.TOKEN_CLS}
    task = next((task for end, task in ends.items() if type(model).__name__.endswith(end)), None)
    if task is None:
        raise HoldfastError(
            f"a prefix stands before a transformer's attention, and {type(model).__name__} is none that PEFT knows",
            wanted="a model for causal or sequence-to-sequence generation, or for sequence or token classification",
        )
    return task
