"""One self-contained HTML page of an analysis, in the looks of the reports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.analysis.interactive import plots
from holdfast.report.palette import INK

if TYPE_CHECKING:
    from holdfast.analysis.leaving import Finding

HERE = Path(__file__).parent
LOOKS = HERE.parent / "report"  # the page's style and its script for light, dark and paper


def render(finding: "Finding", content: Mapping[str, Any]) -> str:
    """The page's text; `content` is what stands in the JSON file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, LOOKS]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    details = {name: _flat(content[name]) for name in ("settings", "machine", "versions")}
    return environment.get_template("analysis.html.j2").render(
        finding=finding,
        plots=plots(finding.panels),
        details=details,
        data=_json({"figures": content["figures"]}),
        ink=INK,
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


def _json(value: Any) -> str:
    """JSON that can't end the element it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
