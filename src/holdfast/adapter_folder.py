"""What a saved PEFT adapter says of itself, read without loading it."""

import json
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.language_model import check_adapter

CONFIG = "adapter_config.json"


def settings_of(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        HoldfastError: no adapter there, or a file that can't be read.
    """
    check_adapter(folder)
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HoldfastError(f"{folder / CONFIG} can't be read: {error}", remedy="copy the adapter again") from error


def base_of(folder: Path) -> str | None:
    """The base model that an adapter names."""
    return settings_of(folder).get("base_model_name_or_path")
