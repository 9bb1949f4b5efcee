"""Squeeze-and-excitation over time: a gate for each channel, from what the sequence holds."""

import torch
from torch import Tensor, nn

from holdfast.adapters.conv_adapter import Pool


class SqueezeExcitation(nn.Module):
    """x * sigmoid(W_2 relu(W_1 pool(x))), arXiv 1709.01507, with W_1 (width / reduction, width).

    Args:
        width: channels.
        reduction: of the channels inside; at least one is left.
        pool: "mean" over real positions, "running" (at t the mean over real positions up to t), or "attention" (the
            average with weights softmax(a . x) over real positions, a learned).
        biases: of both linear layers.
    """

    def __init__(self, width: int, reduction: int, pool: Pool, biases: bool) -> None:
        super().__init__()
        inner = max(1, width // reduction)
        self.pool = pool
        self.down = nn.Linear(width, inner, bias=biases)
        self.up = nn.Linear(inner, width, bias=biases)
        self.attention = nn.Linear(width, 1, bias=False) if pool == "attention" else None

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(batch, time, width) gated; `valid` is (batch, time), 1 where real, in x's dtype."""
        gate = torch.sigmoid(self.up(torch.relu(self.down(self._pooled(x, valid)))))
        return x * gate

    def _pooled(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(batch, 1, width), or (batch, time, width) for the running mean."""
        real = x.new_ones(x.shape[:2]) if valid is None else valid
        weighted = x * real[..., None]
        if self.pool == "running":
            return weighted.cumsum(1) / real.cumsum(1).clamp_min(1)[..., None]
        if self.attention is None:
            return weighted.sum(1, keepdim=True) / real.sum(1).clamp_min(1)[:, None, None]
        scores = self.attention(x)[..., 0].masked_fill(real == 0, torch.finfo(x.dtype).min)
        return (torch.softmax(scores, dim=1)[..., None] * x).sum(1, keepdim=True)
