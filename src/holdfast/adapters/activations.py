"""Activation functions by transformers' names."""

from torch import nn

from holdfast.errors import look_up


def known_activation(name: str) -> None:
    """Raise HoldfastError for a name that transformers does not know."""
    from transformers.activations import ACT2CLS

    look_up("activation", name, ACT2CLS)


def activation(name: str) -> nn.Module:
    """The module of that name.

    Raises:
        HoldfastError: transformers knows none.
    """
    known_activation(name)
    from transformers.activations import ACT2FN

    return ACT2FN[name]
