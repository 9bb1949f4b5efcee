"""ConvAdapter as a PEFT tuner."""

from typing import Any

from torch import Tensor, nn

from holdfast.adapters.adapted_layer import AdaptedLayer
from holdfast.adapters.adapted_model import AdaptedModel, is_causal_layer
from holdfast.adapters.conv_adapter import ConvAdapterConfig
from holdfast.adapters.conv_block import ConvBlock
from holdfast.errors import HoldfastError


class ConvAdapterLayer(AdaptedLayer):
    """A layer with ConvAdapter's blocks."""

    adapter_layer_names = ("convadapter_blocks",)
    in_time = True

    def branch(self, block: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
        """What a block adds."""
        return block(x, valid)


class ConvAdapterModel(AdaptedModel):
    """Puts a ConvAdapter on a model; see `holdfast.ConvAdapterConfig`."""

    prefix = "convadapter_"
    tuner_layer_cls: type[AdaptedLayer] = ConvAdapterLayer

    def places(self, config: ConvAdapterConfig) -> list[str]:
        """The one place of `config.position`."""
        return [config.position]

    def block(self, config: ConvAdapterConfig, width: int, causal: bool) -> nn.Module:
        """A new block."""
        return ConvBlock(width, config, causal)

    def causal(self, config: ConvAdapterConfig, name: str, layer: nn.Module, model: Any) -> bool:
        """As the configuration says, or else as the layer does.

        Raises:
            HoldfastError: a block that would see the future in a layer that does not.
        """
        decoder = is_causal_layer(layer, model)
        if config.causal is False and decoder:
            raise HoldfastError(
                f"causal=False would show the future to {name!r}, a causal decoder's layer, and what it predicts "
                "would be among what it sees",
                remedy="leave causal out, or choose encoder layers by target_modules",
            )
        return decoder if config.causal is None else config.causal
