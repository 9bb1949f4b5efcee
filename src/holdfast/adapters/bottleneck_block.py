"""A bottleneck adapter's block: what it adds to a residual stream."""

import torch
from torch import Tensor, nn

from holdfast.adapters.activations import activation
from holdfast.adapters.bottleneck import BottleneckConfig
from holdfast.adapters.checks import LEARNED
from holdfast.adapters.norms import norm_of


class BottleneckBlock(nn.Module):
    """s up(f(down(norm(x)))), arXiv 1902.00751; with width d and h inside, 2 d h + h + d parameters without a norm.

    Args:
        width: d.
        config: see `BottleneckConfig`.
    """

    def __init__(self, width: int, config: BottleneckConfig) -> None:
        super().__init__()
        hidden = config.width or max(1, width // config.reduction)
        self.norm = norm_of(config.norm, width)
        self.down = nn.Linear(width, hidden)
        self.activation = activation(config.activation)
        self.up = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.dropout)
        learned = config.scale == LEARNED
        self.scale = nn.Parameter(torch.ones(1)) if learned else None
        self.fixed_scale = 1.0 if learned else float(config.scale)
        if config.init == "zero":  # one factor only: with two at zero nothing would ever get a gradient
            for parameter in [self.scale] if self.scale is not None else self.up.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> what is added."""
        y = self.dropout(self.up(self.activation(self.down(self.norm(x)))))
        return y * (self.fixed_scale if self.scale is None else self.scale)
