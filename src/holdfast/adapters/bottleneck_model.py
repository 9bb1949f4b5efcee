"""Bottleneck adapters as a PEFT tuner."""

from typing import Any

from torch import Tensor, nn

from holdfast.adapters.adapted_layer import AdaptedLayer
from holdfast.adapters.adapted_model import AdaptedModel, is_causal_layer
from holdfast.adapters.bottleneck import BottleneckConfig
from holdfast.adapters.bottleneck_block import BottleneckBlock

STYLES = {
    "houlsby": ["attention", "feed_forward"],
    "pfeiffer": ["feed_forward"],
    "parallel": ["parallel"],
    "layer": ["layer"],
}


class BottleneckLayer(AdaptedLayer):
    """A layer with bottleneck blocks."""

    adapter_layer_names = ("bottleneck_blocks",)
    in_time = False

    def branch(self, block: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
        """What a block adds; position by position, so padding is nothing to it."""
        return block(x)


class BottleneckModel(AdaptedModel):
    """Puts a bottleneck adapter on a model; see `holdfast.BottleneckConfig`."""

    prefix = "bottleneck_"
    tuner_layer_cls: type[AdaptedLayer] = BottleneckLayer

    def places(self, config: BottleneckConfig) -> list[str]:
        """The places of `config.style`."""
        return STYLES[config.style]

    def block(self, config: BottleneckConfig, width: int, causal: bool) -> nn.Module:
        """A new block."""
        return BottleneckBlock(width, config)

    def causal(self, config: BottleneckConfig, name: str, layer: nn.Module, model: Any) -> bool:
        """As the layer is; a block position by position keeps either."""
        return is_causal_layer(layer, model)
