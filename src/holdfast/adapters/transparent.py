"""A module around another that answers for it."""

from typing import Any

from torch import nn


class Transparent(nn.Module):
    """Has `base_layer`, and its attributes, which the model around it may read."""

    def __getattr__(self, name: str) -> Any:
        """The base layer's own, where this module has none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not there yet
                raise
            return getattr(self.base_layer, name)
