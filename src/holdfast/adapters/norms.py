"""Norms by name."""

from torch import nn


def norm_of(name: str, width: int) -> nn.Module:
    """The norm called "layer", "rms" or "none", over the last dimension."""
    if name == "none":
        return nn.Identity()
    return nn.RMSNorm(width) if name == "rms" else nn.LayerNorm(width)
