"""Models that ship inside the package."""

from pathlib import Path

SHIPPED = "prose-1m"


def shipped() -> Path:
    """The folder of the embedded language model, for `AutoModelForCausalLM.from_pretrained`."""
    return Path(__file__).parent / SHIPPED
