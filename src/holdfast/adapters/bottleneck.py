"""What a bottleneck adapter trains, as PEFT's configuration."""

from dataclasses import dataclass
from typing import Literal

from peft import PeftConfig

from holdfast.adapters.activations import known_activation
from holdfast.adapters.checks import at_least, one_of, scaled, share
from holdfast.adapters.registration import peft_type

Style = Literal["houlsby", "pfeiffer", "parallel", "layer"]
BottleneckNorm = Literal["layer", "rms", "none"]
BottleneckStart = Literal["zero", "torch"]


@dataclass
class BottleneckConfig(PeftConfig):
    """A small two-layer network beside the residual stream of each transformer layer.

        h + s up(f(down(norm(h))))          (Houlsby et al., arXiv 1902.00751)

    Args:
        target_modules: the transformer layers: a regular expression over whole names, or a list of name endings.
            None finds them; with style "layer", any module whose output is (..., width) will do.
        exclude_modules: PEFT's grammar, taken out of the targets.
        layers_to_transform: only layers of these numbers, the last number in their names.
        modules_to_save: trained densely and saved beside the adapter, such as a new head.
        style: where: "houlsby" (on what attention adds and on what the feed-forward sublayer adds, arXiv 1902.00751),
            "pfeiffer" (on what the feed-forward sublayer adds, arXiv 2005.00247), "parallel" (beside the feed-forward
            sublayer, on its input, arXiv 2110.04366) or "layer" (after the whole layer, as SURE has it).
        width: channels inside; None for the layer's width / reduction.
        reduction: used where `width` is None.
        activation: between the two layers; a name that transformers knows.
        norm: before the first layer.
        scale: a number, or "learned" (one number for each block, zero at the start if `init` is "zero").
        dropout: on what is added.
        init: "zero" (adds nothing at the start) or "torch" (its own rules).
        shared: one block for all layers.

    Raises:
        HoldfastError: a value outside its range.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    style: Style = "pfeiffer"
    width: int | None = None
    reduction: int = 16
    activation: str = "relu"
    norm: BottleneckNorm = "none"
    scale: float | str = 1.0
    dropout: float = 0.0
    init: BottleneckStart = "zero"
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("BOTTLENECK")
        one_of("style", self.style, Style)
        one_of("norm", self.norm, BottleneckNorm)
        one_of("init", self.init, BottleneckStart)
        at_least("width", self.width, 1)
        at_least("reduction", self.reduction, 1)
        share("dropout", self.dropout)
        scaled(self.scale)
        known_activation(self.activation)
