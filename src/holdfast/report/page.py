"""One self-contained HTML page of a run's results: no script, style, font or image from anywhere else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast import files
from holdfast.errors import HoldfastError
from holdfast.report import words
from holdfast.report.context import context


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write the page in one piece.

    Args:
        results: the content of a `results.json`, or several merged; `rows` hold losses in mean nats per item.
        path: of the HTML file.

    Raises:
        HoldfastError: results of another schema or without rows, a missing plotly or jinja2, or no disk space.
    """
    jinja2 = libraries()
    check(results)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        nats=words.decimals,
        percent=words.percent,
        perplexity=words.perplexity,
        seconds=words.seconds,
        memory=words.memory,
        whole=words.whole,
        middle=words.middle,
        strength=words.strength_text,
        identity=id,
    )
    files.write_text(path, environment.get_template("page.html.j2").render(context(results)))


def libraries() -> Any:
    """jinja2, after a look at whether plotly is there too; raises HoldfastError naming the extra."""
    try:
        import jinja2
        import plotly  # noqa: F401
    except ImportError as error:
        raise HoldfastError(
            f"the report needs {error.name}, which is not installed",
            remedy='pip install "holdfast[viz]"; results.json is complete without it',
        ) from error
    return jinja2


def check(results: Mapping[str, Any], name: str = "") -> None:
    """Raise HoldfastError for another schema, or for results without rows.

    Args:
        results: the content of a file.
        name: of that file, for the error.
    """
    where = f"{name}: " if name else ""
    if results.get("schema") != 1:
        raise HoldfastError(
            f"{where}results of schema {results.get('schema')!r}",
            wanted="schema 1",
            causes=["the file was written by another version", "it is not a results.json"],
            remedy="run again, or report with the version that wrote it",
        )
    rows = results.get("rows")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise HoldfastError(f"{where}results without rows: there is nothing to report", remedy="finish a run first")
