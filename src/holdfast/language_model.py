"""Loading a causal language model and its tokenizer from a folder or the hub."""

import warnings
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import HoldfastError


def load_model(name: str, dtype: str = "auto") -> Any:
    """The model in eval mode, on the accelerator when there is one.

    Args:
        name: a folder, or a hub id.
        dtype: "auto" keeps the checkpoint's.

    Raises:
        HoldfastError: no such folder or id, a folder without a model, an unreadable one, or one without some weights.
    """
    from transformers import AutoModelForCausalLM

    _check_place(name)
    wanted: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=wanted, output_loading_info=True)
    except Exception as error:  # transformers, hub, safetensors and torch each raise their own
        raise _not_loaded("model", name, error) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise HoldfastError(
            f"{len(missing)} weights of the model {name!r} are not in its checkpoint: {', '.join(missing[:3])}"
            + (", ..." if len(missing) > 3 else ""),
            causes=["it is no causal language model", "a file of the checkpoint is missing"],
            remedy="name a checkpoint of a whole causal language model",
        )
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model.eval()


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer.

    Raises:
        HoldfastError: as for `load_model`.
    """
    from transformers import AutoTokenizer

    _check_place(name)
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # as above
        raise _not_loaded("tokenizer", name, error) from error


def check_adapter(folder: str | Path) -> None:
    """Raise HoldfastError unless the folder looks like a saved PEFT adapter."""
    if not (Path(folder) / "adapter_config.json").is_file():
        raise HoldfastError(
            f"{folder} is not a PEFT adapter: adapter_config.json is missing",
            remedy="name the folder that `holdfast tune` wrote: OUT/adapter",
        )


def is_model(folder: str | Path) -> bool:
    """Whether a folder holds a whole model rather than an adapter."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file()


def load_adapter(model: Any, folder: str, name: str = "default") -> Any:
    """The model with a saved PEFT adapter, beside those that it has.

    Args:
        model: the base model, or a PEFT model.
        folder: where the adapter lies.
        name: what it is called on the model.

    Raises:
        HoldfastError: no adapter there, or one of another base model.
    """
    from peft import PeftModel

    from holdfast import catalogue

    check_adapter(folder)
    catalogue.make_known()
    try:
        with warnings.catch_warnings():  # PEFT leaves an adapter's missing weights at their start, and only warns
            warnings.filterwarnings("error", message="Found missing adapter keys")
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, folder, name).eval()
            model.load_adapter(folder, name)
            return model.eval()
    except HoldfastError:  # our own methods say it themselves
        raise
    except Exception as error:  # shapes that differ raise RuntimeError, unknown types KeyError or ValueError
        raise HoldfastError(
            f"the adapter in {folder} does not fit the model: {_reason(error)}",
            causes=["it was trained on another base model", "the folder is incomplete"],
            remedy="name the model that the adapter's README.md names",
        ) from error


def _check_place(name: str) -> None:
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        inside = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        raise HoldfastError(
            f"{name} is a folder without a model: config.json is missing",
            wanted="a folder with config.json, model.safetensors and the tokenizer's files",
            causes=[f"it holds {inside}"],
        )
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise HoldfastError(f"there is no folder {name}", remedy="name a model folder or a hub id (organisation/name)")


def _not_loaded(what: str, name: str, error: Exception) -> HoldfastError:
    if Path(name).is_dir():
        return HoldfastError(
            f"the {what} in {name} could not be loaded: {_reason(error)}",
            wanted="a folder written by save_pretrained: config.json, model.safetensors and the tokenizer's files",
            causes=[f"a file of the {what} is missing, cut off or damaged", "transformers does not know this kind"],
            remedy="copy or download the folder again",
        )
    return HoldfastError(
        f"there is no folder {name}, and no {what} {name!r} could be loaded from the hub: {_reason(error)}",
        wanted="a folder written by save_pretrained, or the id of a causal language model on the hub",
        causes=["the name is misspelt", "the hub can't be reached or wants a login (hf auth login)"],
        remedy="check the name; without a network, name a local folder",
    )


def _reason(error: Exception) -> str:
    """What went wrong in one line; where a message goes on after a colon, what follows it too."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
