"""Where in a model adapters go: its transformer layers, and within one its attention and feed-forward sublayers."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from holdfast.errors import HoldfastError

FEED_FORWARD = ("feed_forward", "mlp", "ffn2", "ffn", "ff", "DenseReluDense", "feed_forward_module")
PAIRS = (("fc1", "fc2"), ("linear1", "linear2"), ("lin1", "lin2"), ("ffn", "ffn_output"))
CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)
LAYER_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


@dataclass(frozen=True)
class Site:
    """A place within a layer, by the names of its sub-modules.

    `entry` is where the sublayer's input is seen, `exit` what gives its output; the same module often.
    """

    entry: str
    exit: str


def layer_pattern(model: nn.Module) -> str:
    """A regular expression that matches the names of the model's transformer layers, each as a whole.

    They are the members of every list of modules that hold an attention and layers beside it; of nested lists (Swin's
    stages and their blocks) the inner ones.

    Raises:
        HoldfastError: no such list.
    """
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(is_layer(child) for child in module)
    ]
    lists = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    if not lists:
        raise HoldfastError(
            f"no transformer layers are found in {type(model).__name__}",
            wanted="a list of modules (nn.ModuleList) with an attention in each",
            causes=["the model is no transformer", "its attention's class has no 'Attention' in its name"],
            remedy="name the modules: target_modules=[...] or a regular expression, with position (style) 'layer'",
        )
    return "|".join(rf"{re.escape(name)}\.\d+" for name in lists)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a transformer layer: an attention, and weights outside it, which are matrices or larger.

    By parameters, not by the modules that hold them: a mixture's experts are bare tensors.
    """
    inside = [name for name, child in module.named_modules() if name and _attends(child)]
    return bool(inside) and any(
        parameter.dim() > 1
        for name, parameter in module.named_parameters()
        if not any(name.startswith(f"{outer}.") for outer in inside)
    )


def layer_number(name: str) -> int | None:
    """The last number in a module's name: 3 for "encoder.layers.3"."""
    numbers = LAYER_NUMBER.findall(f".{name}")
    return int(numbers[-1]) if numbers else None


def attention_site(layer: nn.Module) -> Site | None:
    """What gives the (self-)attention sublayer's contribution to the residual stream; None where it is not known.

    In BERT's family the output layer, which adds the residual itself, is split: its linear layer is meant.
    """
    name = next((n for n, child in layer.named_modules() if n and _attends(child)), None)
    while name is not None:
        module = layer.get_submodule(name)
        if isinstance(getattr(getattr(module, "output", None), "dense", None), nn.Module):
            return Site(f"{name}.output.dense", f"{name}.output.dense")
        inner = next((n for n, child in module.named_children() if _attends(child)), None)
        if inner is None:
            return Site(name, name)
        name = f"{name}.{inner}"
    return None


def feed_forward_site(layer: nn.Module) -> Site | None:
    """The feed-forward sublayer, from its input to what it adds to the residual stream; None where it is not known."""
    names = [name for name, _ in layer.named_modules() if name]
    for leaf in FEED_FORWARD:
        for name in reversed(names):
            whole = not isinstance(layer.get_submodule(name), nn.Linear)  # ALBERT's "ffn" is half of one
            if name.rpartition(".")[2] == leaf and whole:
                return Site(name, name)
    for first, second in PAIRS:
        if first in names and second in names:
            return Site(first, second)
    if "intermediate" in names and "output.dense" in names:
        return Site("intermediate", "output.dense")
    return None


def width_of(name: str, layer: nn.Module, config: Any = None) -> int:
    """How many numbers a layer gives for each position.

    Raises:
        HoldfastError: nothing in the layer says it.
    """
    for attribute in ("out_channels", "out_features", "nf"):
        if isinstance(getattr(layer, attribute, None), int):
            return getattr(layer, attribute)
    norms = [m for m in layer.modules() if "norm" in type(m).__name__.lower() and _vector(m) is not None]
    direct = [m for m in layer.children() if m in norms]
    for norm in [*direct, *norms]:
        return _vector(norm)  # type: ignore[return-value]  # None is left out above
    for attribute in ("hidden_size", "d_model"):
        if isinstance(getattr(config, attribute, None), int):
            return getattr(config, attribute)
    raise HoldfastError(
        f"the width of {name!r} ({type(layer).__name__}) is not known",
        wanted="a layer with a norm, or a linear or convolutional layer",
        remedy="choose other target_modules",
    )


def is_causal(layer: nn.Module, otherwise: bool) -> bool:
    """Whether a position of the layer's output depends on earlier positions only, as the layer itself says.

    Args:
        layer: transformers' attentions say `is_causal` or `is_decoder`.
        otherwise: what holds where the layer says neither.
    """
    said = [getattr(m, name) for m in layer.modules() for name in ("is_decoder", "is_causal") if hasattr(m, name)]
    return any(value is True for value in said) if said else otherwise


def _attends(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _vector(norm: nn.Module) -> int | None:
    weight = getattr(norm, "weight", None)
    return len(weight) if weight is not None and weight.dim() == 1 else None
