"""Convolutions over time beside the residual stream."""

from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from holdfast.recipe import Settings
from holdfast.targets import ALL_LINEAR, Targets
from holdfast.tuners.tuner import Tuner


class ConvAdapterOptions(Settings):
    """Of ConvAdapter; see `holdfast.ConvAdapterConfig`."""

    preset: Literal["recommended", "paper"] = "recommended"
    hidden: int | None = Field(None, ge=1, description="channels inside; None: half the width")
    kernels: tuple[int, ...] = (3, 5, 3)
    groups: Literal["grouped", "depthwise-separable", "dense"] = "grouped"
    activation: str = "relu"
    norm: Literal["layer", "rms", "none"] = "layer"
    se_reduction: int | None = Field(16, ge=1, description="of the gate's inside; None: no gate")
    se_pool: Literal["mean", "running", "attention"] = "mean"
    causal: bool | None = Field(None, description="None: as the layer is")
    dilation: int = Field(1, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    scale: float | Literal["learned"] = 1.0
    init: Literal["zero", "torch", "official_hf"] | None = None
    mixing: int | None = Field(None, ge=1, description="channels inside a pair of 1x1 convolutions; None: without")
    biases: bool = False
    shared: bool = Field(False, description="one block for all layers")
    position: Literal["layer", "attention", "feed_forward", "parallel"] = "layer"
    masked: bool | None = None

    @field_validator("kernels", mode="before")
    @classmethod
    def _listed(cls, kernels: Any) -> Any:
        return kernels.split(",") if isinstance(kernels, str) else kernels


class ConvAdapter(Tuner):
    """h + s SE(conv(conv(f(conv(norm(h)))))), convolutions over time and a gate after each transformer layer.

    The convolutions' own count hardly depends on their channels, so a budget of parameters sets `mixing`.
    Where no targets are named, the transformer layers are found.
    """

    name = "convadapter"
    paper = "SURE, arXiv 2303.03267"
    Options = ConvAdapterOptions
    sizes = ("mixing",)
    least = 0
    shifts = False
    registered_by = "holdfast.adapters"
    options: ConvAdapterOptions

    def sized(self, size: int) -> Tuner:
        return super().sized(size) if size else self

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from peft import TaskType, get_peft_model

        from holdfast.adapters import ConvAdapterConfig

        config = ConvAdapterConfig(
            target_modules=None if targets == ALL_LINEAR else targets,  # type: ignore[arg-type]
            task_type=TaskType.CAUSAL_LM if hasattr(model, "generate") else None,
            **self.options.model_dump(),
        )
        return get_peft_model(model, config)

    def component(self, name: str) -> str:
        from holdfast.adapters.components import component_of

        return component_of(name)
