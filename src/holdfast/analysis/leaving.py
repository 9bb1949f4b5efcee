"""What an analysis leaves: NAME.json with settings and figures, NAME.html to look at, NAME.svg for a paper."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from holdfast.analysis import page
from holdfast.analysis.figure import Panel
from holdfast.analysis.static import picture
from holdfast.errors import HoldfastError
from holdfast.files import write_json, write_text
from holdfast.machine import machine, versions


@dataclass(frozen=True)
class Table:
    """Figures for people, as text; `right`: the first column that holds numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    right: int = 1


@dataclass
class Finding:
    """What an analysis found.

    Args:
        name: of the analysis and of its files.
        title: of the page.
        question: that it answers, in a sentence.
        words: what it shows, in plain English with the numbers.
        settings: that the figures depend on.
        figures: for the JSON file; tensors and numbers that are not finite (null) are taken care of.
        panels: to draw.
        tables: to show.
        warnings: what makes the figures less certain.
    """

    name: str
    title: str
    question: str
    words: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    panels: list[Panel]
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """What stands in the JSON file."""
        return {
            "schema": 1,
            "analysis": self.name,
            "title": self.title,
            "question": self.question,
            "words": self.words,
            "settings": plain(self.settings),
            "machine": machine(),
            "versions": versions(),
            "figures": plain(self.figures),
            "warnings": list(self.warnings),
        }


def leave(finding: Finding, out: Path) -> dict[str, Any]:
    """Write the three files into `out`, each whole; the JSON file last: where it stands, the others do too.

    Everything is drawn before anything is written, so a failure leaves what was there before.

    Returns:
        what stands in the JSON file.

    Raises:
        HoldfastError: plotly, jinja2 or matplotlib is missing, or nothing can be written there.
    """
    content = finding.content()
    drawn = {"html": page.render(finding, content), "svg": picture(finding.panels)}
    for suffix, text in drawn.items():
        write_text(out / f"{finding.name}.{suffix}", text)
    write_json(out / f"{finding.name}.json", content)
    return content


def require_drawing() -> None:
    """Raise HoldfastError before any work where a library that draws is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise HoldfastError(
            f"an analysis draws its figures with {error.name}, which is not installed",
            remedy='pip install "holdfast[viz]"',
        ) from error


def plain(value: Any) -> Any:
    """The same in JSON's types; numbers that are not finite become null, which JSON has."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
