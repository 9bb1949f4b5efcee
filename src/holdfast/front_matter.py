"""The head of a model card: what hubs read of it."""

from collections.abc import Mapping
from typing import Any

import yaml


def front_matter(metadata: Mapping[str, Any]) -> str:
    """Metadata as YAML between its two lines, without a line's end behind them."""
    return f"---\n{yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True).strip()}\n---"
