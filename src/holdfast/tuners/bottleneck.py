"""Small networks beside the residual stream."""

from typing import Literal

from pydantic import Field
from torch import nn

from holdfast.recipe import Settings
from holdfast.targets import ALL_LINEAR, Targets
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.wrapping import wrapped


class BottleneckOptions(Settings):
    """Of bottleneck adapters; see `holdfast.BottleneckConfig`."""

    style: Literal["houlsby", "pfeiffer", "parallel", "layer"] = Field("pfeiffer", description="where they stand")
    width: int | None = Field(None, ge=1, description="channels inside; null: by reduction")
    reduction: int = Field(16, ge=1, description="the layer's width over the adapter's, where width is not given")
    activation: str = Field("relu", description="a name that transformers knows")
    norm: Literal["layer", "rms", "none"] = Field("none", description="before the first layer")
    scale: float | Literal["learned"] = Field(1.0, description="of what is added; a number or learned")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what is added")
    init: Literal["zero", "torch"] = Field("zero", description="zero: it starts as nothing")
    shared: bool = Field(False, description="one block for all layers")


class Bottleneck(Tuner):
    """h + s up(f(down(h))) after attention and feed-forward, after feed-forward alone, or beside it.

    Where no targets are named, the transformer layers are found.
    """

    name = "bottleneck"
    paper = "Houlsby, arXiv 1902.00751; Pfeiffer, 2005.00247; parallel, 2110.04366"
    Options = BottleneckOptions
    sizes = ("width", "reduction")
    shifts = False
    registered_by = "holdfast.adapters"
    options: BottleneckOptions

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from holdfast.adapters import BottleneckConfig

        chosen = None if targets == ALL_LINEAR else targets
        return wrapped(model, BottleneckConfig, target_modules=chosen, **self.options.model_dump())

    def component(self, name: str) -> str:
        from holdfast.adapters.components import component_of

        return component_of(name)
