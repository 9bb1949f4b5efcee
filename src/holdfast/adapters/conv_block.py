"""ConvAdapter's block: what it adds to a residual stream of speech frames, tokens or patches."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from holdfast.adapters.activations import activation
from holdfast.adapters.checks import LEARNED
from holdfast.adapters.conv_adapter import ConvAdapterConfig, no_causal_attention
from holdfast.adapters.norms import norm_of
from holdfast.adapters.squeeze import SqueezeExcitation
from holdfast.errors import HoldfastError


class ConvBlock(nn.Module):
    """s SE(mix(conv_n(... f(conv_1(norm(x)))))), SURE (arXiv 2303.03267) as its code has it with preset "paper".

    With width d, hidden d/2 and kernels (3, 5, 3): the first convolution has d/2 groups of two neighbouring channels,
    the second works channel by channel, and the third makes two channels of each; 8 d + 5 d/2 + 2 d floor(d/16)
    parameters, 141 824 for d = 1024. A position's output depends on 4 positions to each side, or on 8 earlier ones
    where causal, and through the gate on the whole sequence, or where causal on all that came before.

    Args:
        width: d.
        config: see `ConvAdapterConfig`.
        causal: whether the layer is.
    """

    def __init__(self, width: int, config: ConvAdapterConfig, causal: bool) -> None:
        super().__init__()
        hidden = config.hidden or max(1, width // 2)
        self.causal, self.dilation, self.masked = causal, config.dilation, bool(config.masked)
        self.norm = norm_of(config.norm, width)
        widths = [width, *[hidden] * (len(config.kernels) - 1), width]
        self.convolutions = nn.ModuleList(
            convolution(inn, out, kernel, config)
            for inn, out, kernel in zip(widths, widths[1:], config.kernels, strict=False)
        )
        self.activation = activation(config.activation)
        self.mixing = None if config.mixing is None else Mixing(width, config.mixing, config)
        self.squeeze_excitation = None
        if config.se_reduction is not None:
            pool = "running" if causal and config.se_pool == "mean" else config.se_pool
            if causal and pool == "attention":
                raise no_causal_attention()
            self.squeeze_excitation = SqueezeExcitation(width, config.se_reduction, pool, config.biases)
        self.dropout = nn.Dropout(config.dropout)
        learned = config.scale == LEARNED
        self.scale = nn.Parameter(torch.ones(1)) if learned else None
        self.fixed_scale = 1.0 if learned else float(config.scale)
        self.start(config)

    def start(self, config: ConvAdapterConfig) -> None:
        """Draw the weights as `config.init` says; torch has drawn them once already."""
        if config.init == "official_hf":
            for module in self.modules():
                if isinstance(module, nn.Conv1d):
                    nn.init.kaiming_normal_(module.weight)
                elif isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Conv1d | nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        elif config.init == "zero" and self.scale is not None:
            nn.init.zeros_(self.scale)  # the rest must not be zero too: nothing would ever get a gradient
        elif config.init == "zero":
            last = [m for m in self.convolutions[-1].modules() if isinstance(m, nn.Conv1d)][-1]
            silent = [last] if self.mixing is None else [last, self.mixing.up]
            for parameter in (p for module in silent for p in module.parameters()):
                nn.init.zeros_(parameter)  # gradients reach the last convolution past the mixing

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(batch, time, width) -> what is added; `valid` (batch, time) bool, None for everywhere.

        What stands at padding reaches no real position, and is zero.
        """
        real = None if valid is None or not self.masked else valid.to(x.dtype)  # (batch, time)
        y = self.norm(x).transpose(1, 2)  # (batch, width, time)
        for number, conv in enumerate(self.convolutions):
            y = self._over_time(cast(nn.Sequential, conv), y, real)
            y = self.activation(y) if number == 0 else y
        if self.mixing is not None:
            y = self.mixing(y)
        y = y.transpose(1, 2)  # (batch, time, width)
        if self.squeeze_excitation is not None:
            y = self.squeeze_excitation(y, real)
        y = self.dropout(y) * (self.fixed_scale if self.scale is None else self.scale)
        return y if real is None else y * real[..., None]

    def _over_time(self, conv: nn.Sequential, y: Tensor, real: Tensor | None) -> Tensor:
        """One convolution, (batch, channels, time) -> the same time; padded on the left only where causal."""
        if real is not None:
            y = y * real[:, None]
        reach = (cast(nn.Conv1d, conv[0]).kernel_size[0] - 1) * self.dilation
        before = reach if self.causal else reach // 2
        return conv(functional.pad(y, (before, reach - before)))


class Mixing(nn.Module):
    """y + W_up f(W_down y) over channels, position by position: what grouped convolutions and a gate don't do."""

    def __init__(self, width: int, inner: int, config: ConvAdapterConfig) -> None:
        super().__init__()
        self.down = nn.Conv1d(width, inner, 1, bias=config.biases)
        self.activation = activation(config.activation)
        self.up = nn.Conv1d(inner, width, 1, bias=config.biases)

    def forward(self, y: Tensor) -> Tensor:
        """(batch, width, time) -> the same."""
        return y + self.up(self.activation(self.down(y)))


def convolution(inn: int, out: int, kernel: int, config: ConvAdapterConfig) -> nn.Sequential:
    """A convolution over time, `inn` to `out` channels, in the way of `config.groups`; it pads nothing itself.

    Raises:
        HoldfastError: channels that can't be grouped.
    """
    return WAYS[config.groups](inn, out, kernel, {"dilation": config.dilation, "bias": config.biases})


def _dense(inn: int, out: int, kernel: int, settings: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inn, out, kernel, **settings))


def _separable(inn: int, out: int, kernel: int, settings: dict[str, Any]) -> nn.Sequential:
    depthwise = nn.Conv1d(inn, inn, kernel, groups=inn, **settings)
    return nn.Sequential(depthwise, nn.Conv1d(inn, out, 1, bias=settings["bias"]))


def _grouped(inn: int, out: int, kernel: int, settings: dict[str, Any]) -> nn.Sequential:
    groups = math.gcd(inn, out)
    if groups == 1 and min(inn, out) > 1:
        raise HoldfastError(
            f"{inn} and {out} channels have no groups in common",
            wanted="hidden channels that divide the width, or the other way round",
            remedy=f"set hidden={max(inn, out) // 2}, or groups='dense' or 'depthwise-separable'",
        )
    return nn.Sequential(nn.Conv1d(inn, out, kernel, groups=groups, **settings))


WAYS: dict[str, Callable[[int, int, int, dict[str, Any]], nn.Sequential]] = {
    "grouped": _grouped,
    "depthwise-separable": _separable,
    "dense": _dense,
}
