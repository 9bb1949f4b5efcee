"""The model as it was pre-trained, for a while: adapters off, eval mode, everything restored afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def at_anchor(model: nn.Module) -> Iterator[None]:
    """The model as it was pre-trained, for measuring: adapters off, eval mode, nothing requires a gradient.

    Training modes, gradient flags, adapter state and random states are restored. Raises HoldfastError for adapters
    that are merged or whose initialisation changed the base weights.
    """
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), adapters_off(model):
        try:
            model.eval()
            model.requires_grad_(False)
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model's function, whatever adapters are on it."""
    disable = getattr(model, "disable_adapter", None)
    if disable is None:
        yield
        return
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with disable():
            yield
    finally:
        for parameter, flag in flags.items():  # PEFT turns frozen adapter weights trainable on the way back
            parameter.requires_grad_(flag)


@contextmanager
def teaching(model: nn.Module) -> Iterator[None]:
    """The model as teacher: adapter off, no dropout."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with adapters_off(model):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
