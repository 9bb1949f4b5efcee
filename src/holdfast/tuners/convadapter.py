"""Convolutions over time beside the residual stream."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from holdfast.recipe import Settings
from holdfast.targets import ALL_LINEAR, Targets
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.wrapping import wrapped


class ConvAdapterOptions(Settings):
    """Of ConvAdapter; see `holdfast.ConvAdapterConfig`."""

    preset: Literal["recommended", "paper"] = Field("recommended", description="paper: SURE's block as it is")
    hidden: int | None = Field(None, ge=1, description="channels inside; null: half the width")
    kernels: tuple[int, ...] = Field((3, 5, 3), description="of the convolutions in order, 3,5,3")
    groups: Literal["grouped", "depthwise-separable", "dense"] = Field("grouped", description="of channels")
    activation: str = Field("relu", description="a name that transformers knows")
    norm: Literal["layer", "rms", "none"] = Field("layer", description="before the first convolution")
    se_reduction: int | None = Field(
        16, ge=1, description="width over the channels inside the gate; null: no gate, and far fewer parameters"
    )
    se_pool: Literal["mean", "running", "attention"] = Field("mean", description="what the gate sees of time")
    causal: bool | None = Field(None, description="null: as the layer is")
    dilation: int = Field(1, ge=1, description="of the convolutions")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what is added")
    scale: float | Literal["learned"] = Field(1.0, description="of what is added; a number or learned")
    init: Literal["zero", "torch", "official_hf"] | None = Field(None, description="null: the preset's")
    mixing: int | None = Field(None, ge=1, description="channels inside a pair of 1x1 convolutions; null: without")
    biases: bool = Field(False, description="of convolutions and gate")
    shared: bool = Field(False, description="one block for all layers")
    position: Literal["layer", "attention", "feed_forward", "parallel"] = Field(
        "layer", description="after what it stands, or beside"
    )
    masked: bool | None = Field(None, description="padding is left out; null: the preset's")

    @field_validator("kernels", mode="before")
    @classmethod
    def _listed(cls, kernels: Any) -> Any:
        return kernels.split(",") if isinstance(kernels, str) else kernels


class ConvAdapter(Tuner):
    """h + s SE(conv(conv(f(conv(norm(h)))))), convolutions over time and a gate after each transformer layer.

    The convolutions' own count hardly depends on their channels, so a budget of parameters sets `mixing`. Most
    are the gate's: a smaller budget halves its inside until it fits, and then leaves it out, unless the recipe says
    `se_reduction` or asks for the paper's block. Where no targets are named, the transformer layers are found.
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

    def smaller(self) -> Iterator[Tuner]:
        options = self.options
        if options.preset == "paper" or "se_reduction" in options.model_fields_set or options.se_reduction is None:
            return
        for times in (*(2**power for power in range(1, 11)), None):
            reduction = None if times is None else options.se_reduction * times
            yield type(self)(options.model_copy(update={"se_reduction": reduction}))

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from holdfast.adapters import ConvAdapterConfig

        chosen = None if targets == ALL_LINEAR else targets
        return wrapped(model, ConvAdapterConfig, target_modules=chosen, **self.options.model_dump())

    def component(self, name: str) -> str:
        from holdfast.adapters.components import component_of

        return component_of(name)
