"""Learned scales on keys, values and feed-forward activations, through PEFT."""

import re
from typing import Any

from torch import nn

from holdfast.errors import HoldfastError
from holdfast.targets import ALL_LINEAR, Targets, select
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.wrapping import wrapped

# What layers are called in transformers 5: those that make keys and values (or queries, keys and values at once), and
# those that read what the feed-forward part's activation gives.
KEYS_VALUES = re.compile(
    r"(.*\.)?(k|v|key|value|key_value|query_key_value|c_attn|qkv|Wqkv|att_proj"
    r"|(k|v|key|value|qkv|query_key_value|kv)_(proj|lin|proj_with_mqa))"
)
ACTIVATIONS = re.compile(
    r"(.*\.)?(down_proj|fc2|wo|w2|fc_out|ff_out|lin2|linear2|dense_4h_to_h|output_dense"
    r"|(mlp|ffn|ff|feed_forward|intermediate)\.(c_proj|output|dense_2)|(?<!attention\.)output\.dense)"
)


class Ia3(Tuner):
    """W diag(l) on what feed-forward layers read, diag(l) W on what keys and values give; l starts at one.

    Where no targets are named, the paper's layers, found by the names that transformers gives them. Of named ones,
    those that read a feed-forward activation are scaled at their input, all others at their output, a bias too (which
    no anchor of weights prices: where there is one, the penalty refuses).
    (PEFT's own table scales BERT's attention output at its input, and Gemma's queries in place of its keys.)
    """

    name = "ia3"
    paper = "(IA)^3, arXiv 2205.05638"

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from peft import IA3Config

        from holdfast.adapters.weight_norm import folded_with_words

        layers = self._layers(model, targets)
        folded_with_words(model, layers)
        first = [name for name in layers if ACTIVATIONS.fullmatch(name)]
        try:
            return wrapped(
                model,
                IA3Config,
                target_modules=sorted(layers),
                # PEFT compares endings of a list: layer 1's would match layer 11's.
                feedforward_modules="|".join(map(re.escape, sorted(first))) if first else [],
                fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in layers.values()),
            )
        except ValueError as error:  # it scales linear layers and convolutions over planes only
            raise HoldfastError(
                f"PEFT's (IA)^3 can't scale one of these layers: {' '.join(str(error).split())}",
                remedy="name linear layers: --targets",
            ) from error

    def _layers(self, model: nn.Module, targets: Targets) -> dict[str, Any]:
        layers = select(model, targets)
        if targets != ALL_LINEAR:
            return layers
        found = {n: m for n, m in layers.items() if KEYS_VALUES.fullmatch(n) or ACTIVATIONS.fullmatch(n)}
        if not found:
            raise HoldfastError(
                "no layer of the model has a name by which keys, values or feed-forward activations are known",
                remedy="name the layers to scale: --targets",
            )
        return found
