"""Putting one of PEFT's methods, or one of ours that PEFT knows, on a model."""

from collections.abc import Callable
from typing import Any

from torch import nn


def wrapped(model: nn.Module, config: Callable[..., Any], **options: Any) -> nn.Module:
    """The model with the adapter that a configuration of these options describes.

    Args:
        model: changed in place; one that generates is told to PEFT as a causal language model.
        config: a PeftConfig's class.
        options: its own.
    """
    from peft import TaskType, get_peft_model

    task = TaskType.CAUSAL_LM if hasattr(model, "generate") else None
    return get_peft_model(model, config(task_type=task, **options))
