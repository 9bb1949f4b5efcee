"""A tuned model as plain weights, beside the one it came from."""

import copy
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.language_model import is_model, load_adapter, load_model


def with_adapter(model: Any, folder: Path, dtype: str = "auto") -> Any:
    """A copy of the model with an adapter in its weights, or the model that was tuned whole.

    Raises:
        HoldfastError: no adapter there, one of another base model, or one that moves no weights.
    """
    if is_model(folder):
        return load_model(str(folder), dtype)
    return merged(load_adapter(copy.deepcopy(model), str(folder)))


def merged(model: Any) -> Any:
    """The model itself, its adapter put into its weights; as it is where it has none.

    Raises:
        HoldfastError: an adapter that moves no weights (prompts, prefixes), or one on weight-normed layers.
    """
    from holdfast.adapters.weight_norm import check_mergeable

    if not hasattr(model, "peft_config"):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        raise HoldfastError(
            "this adapter moves no weights, so it can't be put into them",
            causes=["prompts and prefixes stand beside the model"],
            remedy="name an adapter that changes weights (LoRA, IA3, SIFT and the like)",
        )
    check_mergeable(model)
    return model.merge_and_unload()
