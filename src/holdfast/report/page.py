"""One self-contained HTML page of a run's results: no script, style, font or image from anywhere else."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast import files
from holdfast.errors import HoldfastError
from holdfast.report import words
from holdfast.report.canvas import dash_of, series_key, several_methods
from holdfast.report.comparison import Setting, able, by_series, compare, least_forgetting, representatives, validated
from holdfast.report.continuations import continuations
from holdfast.report.figures import forecast, frontier
from holdfast.report.finding import KEEP, finding, forecast_sentence, support
from holdfast.report.heat import caption, heat
from holdfast.report.palette import INK, styles
from holdfast.report.training import curves

KEEPS = (0.98, 0.95, 0.90, 0.80)  # shares of plain gain in the table of choices
_CONFIG = {"displayModeBar": False, "displaylogo": False, "responsive": True, "scrollZoom": False}


def write(results: Mapping[str, Any], path: Path) -> None:
    """Write the page in one piece.

    Args:
        results: the content of a `results.json`; `rows` hold losses in mean nats per item.
        path: of the HTML file.

    Raises:
        HoldfastError: results of another schema or without rows, a missing plotly or jinja2, or no disk space.
    """
    jinja2 = _libraries()
    _check(results)
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
    )
    files.write_text(path, environment.get_template("page.html.j2").render(_context(results)))


def _libraries() -> Any:
    try:
        import jinja2
        import plotly  # noqa: F401
    except ImportError as error:
        raise HoldfastError(
            f"the report needs {error.name}, which is not installed",
            remedy='pip install "holdfast[viz]"; results.json is complete without it',
        ) from error
    return jinja2


def _check(results: Mapping[str, Any]) -> None:
    if results.get("schema") != 1:
        raise HoldfastError(
            f"results of schema {results.get('schema')!r}",
            wanted="schema 1",
            causes=["the file was written by another version", "it is not a results.json"],
            remedy="run again, or report with the version that wrote it",
        )
    if not results.get("rows"):
        raise HoldfastError("results without rows: there is nothing to report", remedy="finish a run first")


def _context(results: Mapping[str, Any]) -> dict[str, Any]:
    settings = compare(results["rows"])
    source, target = results.get("source") or {}, results.get("target") or {}
    items = {"source": source.get("item") or "item", "target": target.get("item") or "item"}
    chosen = representatives(settings, KEEP)
    methods = [[s for s in settings if s.method == method] for method in dict.fromkeys(s.method for s in settings)]
    headline, *others = [finding(group, items["target"]) for group in methods]
    style = styles(s.series for s in settings)
    plain = next((s for s in settings if s.is_plain), None)
    return {
        "title": results.get("title") or "Learning and forgetting",
        "question": results.get("question") or "",
        "headline": headline,
        "support": [*support(methods[0], items["target"], validated(results["rows"])), *others],
        "warnings": results.get("warnings") or [],
        "source": _name(source, "source data"),
        "target": _name(target, "target data"),
        "validated": validated(results["rows"]),
        "item": items["target"],
        "source_item": items["source"],
        "sides": [side for side in ("source", "target") if any(s.span(f"{side}_after") for s in settings)],
        "perplexity": {side: item == "token" for side, item in items.items()},
        "settings": settings,
        "series": _series(settings, style),
        "style": style,
        "dashes": [f"{dash_of(group[0], settings)} for {words.method_name(group[0].method)}" for group in methods],
        "many": several_methods(settings),
        "compared": len(settings) > 1 and any(s.kept or s.share for s in settings),
        "choices": _choices(settings),
        "chosen": chosen,
        "bars": (bars := _bars(settings, chosen)),
        "widest": max([1.0, *(forgot for _, forgot in bars if forgot)]),
        "best": least_forgetting(methods[0], KEEP),
        "prompts": continuations(chosen),
        "forecast_sentence": forecast_sentence(settings),
        "costs": any(s.span(key) for s in settings for key in ("seconds", "seconds_per_step", "peak_memory_mb")),
        "plain_step": words.middle(plain.span("seconds_per_step")) if plain else None,
        "details": {name: flat(results[name]) for name in ("settings", "machine", "versions") if results.get(name)},
        "runs": len(results["rows"]),
        "keep": KEEP,
        "ink": INK,
        "words": words,
        **_plots(settings, chosen, style, items),
    }


def _name(data: Mapping[str, Any], otherwise: str) -> str:
    """What the page calls a data set."""
    path = str(data.get("path") or otherwise)
    return data.get("name") or ("text of the model’s own" if path == "self" else Path(path).name or path)


def _series(settings: Sequence[Setting], style: Mapping[tuple[str, str], Any]) -> list[dict[str, Any]]:
    """One entry of the key for each penalty, and its settings."""
    many = several_methods(settings)
    return [
        {
            "key": series_key(members[0]),
            "name": words.penalty_name(members[0].penalty),
            "method": words.method_name(members[0].method) if many else "",
            "meaning": words.meaning(members[0].penalty),
            "style": style[members[0].series],
            "settings": members,
        }
        for members in by_series(settings)
    ]


def _choices(settings: Sequence[Setting]) -> list[tuple[float, Setting]]:
    """For each share of plain gain that a user may want, the setting that forgets least."""
    if len([s for s in settings if not s.is_plain]) < 2 or several_methods(settings):
        return []
    found: list[tuple[float, Setting]] = []
    for keep in KEEPS:
        setting = least_forgetting(settings, keep)
        if setting is not None and (not found or found[-1][1] is not setting):
            found.append((keep, setting))
    return found if len(found) > 1 else []


def _bars(settings: Sequence[Setting], chosen: Sequence[Setting]) -> list[tuple[Setting, float | None]]:
    """Each penalty's least forgetting at the gain that the finding asks for, rising; None where it kept less."""
    if len(chosen) < 2 or not any(s.share for s in settings):
        return []
    keeping = able(chosen, KEEP)
    rising = sorted(keeping, key=lambda s: s.share.median if s.share else math.inf)
    return [(s, words.middle(s.share)) for s in rising] + [(s, None) for s in chosen if s not in keeping]


def _plots(settings: Sequence[Setting], chosen: Sequence[Setting], style: Any, items: Any) -> dict[str, Any]:
    """The plots as HTML; the first one brings plotly's script with it."""
    loaded = False

    def drawn(figure: Any, name: str) -> str:
        nonlocal loaded
        include, loaded = not loaded, True
        return figure.to_html(
            full_html=False, include_plotlyjs=include, div_id=name, config=_CONFIG, default_height="auto"
        )

    plots: dict[str, Any] = {"frontier": "", "forecast": "", "curves": {}, "heat": []}
    if sum(s.gain is not None and s.forgetting is not None for s in settings) > 1:
        plots["frontier"] = drawn(frontier(settings, style, items["target"]), "frontier")
    predicted = forecast(settings, style, items["source"])
    if predicted is not None:
        plots["forecast"] = drawn(predicted, "forecast")
    for title, figure in curves(chosen, style, items["target"]).items():
        plots["curves"][title] = drawn(figure, f"curve-{len(plots['curves'])}")
    maps = [(setting, heat(setting, items["source"])) for setting in chosen]
    plots["heat"] = [
        (caption(setting), drawn(figure, f"heat-{i}")) for i, (setting, figure) in enumerate(maps) if figure
    ]
    return plots


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text."""
    if not isinstance(value, Mapping):
        listed = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return {prefix: "–" if value is None else listed}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
