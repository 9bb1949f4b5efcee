"""Every setting and every run as the page's panel shows it, in JSON: words are found here, drawn there."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from holdfast.report import words
from holdfast.report.budgets import notes, sentence
from holdfast.report.canvas import Styles, series_key, several_families
from holdfast.report.comparison import Row, Setting, Span, forgetting, gain, number, span
from holdfast.report.heat import MEASURES, Measure, grid, layers
from holdfast.report.palette import INK
from holdfast.report.reproducing import recipe_text
from holdfast.report.training import CURVES, logged, thinned, unit
from holdfast.report.trajectories import TITLES, moments

MANY = 20  # runs; above, each is shown in less detail, or the page would weigh tens of megabytes
POINTS, FEW_POINTS = 300, 60  # of a curve
CHARACTERS, FEW_CHARACTERS = 4000, 400  # of a sample
LAYERS = 400  # cells of a map


def identify(settings: Sequence[Setting]) -> dict[int, str]:
    """A name within the page for every setting and run, readable and the same whenever the page is written again.

    A setting with a single run has its run's. Keys are `id()` of the objects.
    """
    taken: set[str] = set()
    ids: dict[int, str] = {}
    for setting in settings:
        name = words.setting_name(setting, alone=not several_families(settings))
        if len(setting.rows) > 1:
            ids[id(setting)] = _unused(f"run {name}", taken)
        for row in setting.rows:
            ids[id(row)] = _unused(f"run {name} seed {row.get('seed', 0)}", taken)
        ids.setdefault(id(setting), ids[id(setting.rows[0])])
    return ids


def _unused(text: str, taken: set[str]) -> str:
    slug = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
    name = next(name for i in range(1, len(taken) + 2) if (name := slug if i == 1 else f"{slug}-{i}") not in taken)
    taken.add(name)
    return name


def entries(
    settings: Sequence[Setting],
    styles: Styles,
    ids: Mapping[int, str],
    items: dict[str, str],
    shared: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Anchor on the page -> what its panel shows; a setting with several runs lists them.

    Args:
        settings: all of the page.
        styles: of their series.
        ids: from `identify`.
        items: what the losses of each side are per.
        shared: the settings that the results record for all runs.
    """
    many = sum(len(setting.rows) for setting in settings) > MANY
    found = {}
    for setting in settings:
        common = {
            "name": words.setting_name(setting, alone=not several_families(settings)),
            "meaning": words.meaning(setting.penalty),
            "key": series_key(setting),
            "family": words.family_name(setting),
            "color": None if styles[setting.series].color == INK else styles[setting.series].color,
            "path": styles[setting.series].path,
        }
        own = [ids[id(row)] for row in setting.rows]
        if len(own) > 1:
            which = f"median of {len(own)} runs, with their range"
            found[ids[id(setting)]] = common | {"which": which, "figures": figures(setting.rows), "runs": own}
        for name, row in zip(own, setting.rows, strict=True):
            found[name] = common | _run(row, items, shared, many)
            if len(own) > 1:
                found[name]["of"] = ids[id(setting)]
    return found


def thinning(settings: Sequence[Setting]) -> str:
    """What the panel leaves out, in words; empty where it is nothing."""
    runs = sum(len(setting.rows) for setting in settings)
    if runs <= MANY:
        return ""
    return (
        f"With {runs} runs, a run’s curves are thinned out to {FEW_POINTS} points, its texts end after "
        f"{FEW_CHARACTERS} characters and its layers’ maps after {LAYERS} layers; results.json holds all of it."
    )


def _run(row: Row, items: dict[str, str], shared: Mapping[str, Any], many: bool) -> dict[str, Any]:
    points, characters = (FEW_POINTS, FEW_CHARACTERS) if many else (POINTS, CHARACTERS)
    budget = sentence(row)
    folder = row.get("folder")
    said = {
        "which": f"seed {row.get('seed', words.MISSING)}" + (f", from {folder}" if folder else ""),
        "seed": str(row.get("seed", words.MISSING)),
        "figures": figures([row]),
        "notes": [budget[:1].upper() + budget[1:] + "."] * bool(budget) + notes(row),
        "recipe": recipe_text(row, shared),
        "curves": [*_along(row, items, points), *_curves(row, items, points)],
        "maps": [found for measure in MEASURES if (found := _map(row, measure))],
        "samples": [_sample(sample, characters) for sample in row.get("samples") or []],
    }
    return {key: value for key, value in said.items() if value}


def figures(rows: Sequence[Row]) -> list[list[str]]:
    """Label and text of what was measured; of several rows the median and the range."""
    found = {
        "Gain, nats": _range(span(map(gain, rows)), words.decimals),
        "Forgetting, nats": _range(span(map(forgetting, rows)), words.decimals),
    }
    for side in ("target", "source"):
        pair = [_range(_span(rows, f"{side}_{when}"), words.decimals) for when in ("before", "after")]
        found[f"{side.capitalize()} loss"] = " → ".join(filter(None, pair))
    found |= {
        "Forecast of forgetting, nats": _range(_span(rows, "predicted_forgetting"), words.decimals),
        "Training": _range(_span(rows, "seconds"), words.seconds),
        "Per step": _range(_span(rows, "seconds_per_step"), words.seconds),
        "Before, once": _range(_span(rows, "anchor_seconds"), words.seconds),
        "Memory": _range(_span(rows, "peak_memory_mb"), words.memory),
        "Trained parameters": _range(_span(rows, "trainable_parameters"), words.whole),
        "Of them": words.in_words(_same(rows, "trainable_by_component") or {}),
    }
    return [[label, text] for label, text in found.items() if text]


def _same(rows: Sequence[Row], key: str) -> Any:
    """What all rows have there, None where they differ."""
    first = rows[0].get(key) if rows else None
    return first if all(row.get(key) == first for row in rows) else None


def _span(rows: Sequence[Row], key: str) -> Span | None:
    return span(number(row, key) for row in rows)


def _range(found: Span | None, text: Any) -> str:
    if found is None:
        return ""
    low, middle, high = text(found.low), text(found.median), text(found.high)
    return middle if low == high else f"{middle} ({low} to {high})"


def _along(row: Row, items: dict[str, str], most: int) -> list[dict[str, Any]]:
    path = [moment for moment in moments(row) if moment[0] is not None]
    axes = {"gain": items["target"], "forgetting": items["source"]}
    lines = {
        side: thinned([(m[0], m[i]) for m in path if m[0] is not None and m[i] is not None], most)  # type: ignore[misc]
        for i, side in enumerate(TITLES, start=1)
    }
    return [_line(TITLES[side], f"nats per {axes[side]}", line) for side, line in lines.items() if len(line) > 1]


def _curves(row: Row, items: dict[str, str], most: int) -> list[dict[str, Any]]:
    lines = {key: thinned(logged(row, key), most) for key in CURVES}
    return [_line(CURVES[key][0], unit(key, row, items), line) for key, line in lines.items() if len(line) > 1]


def _line(title: str, axis: str, line: Iterable[tuple[float, float]]) -> dict[str, Any]:
    steps, values = zip(*line, strict=True)
    return {"title": title, "unit": html.escape(axis), "x": steps, "y": [_short(value) for value in values]}


def _map(row: Row, measure: Measure) -> dict[str, Any] | None:
    values = layers([row], measure.key)
    largest = sorted(values, key=lambda name: -values[name])[:LAYERS]
    found = grid({name: _short(values[name]) for name in values if name in set(largest)})
    if found is None:
        return None
    kinds = [html.escape(kind) for kind in found.kinds]  # plotly reads its texts as HTML
    about = {"title": measure.title, "format": measure.format, "unit": measure.unit}
    return about | {"kinds": kinds, "blocks": [str(block) for block in found.blocks], "values": found.values}


def _sample(sample: Mapping[str, Any], most: int) -> dict[str, str]:
    texts = {key: str(sample.get(key) or "") for key in ("side", "prompt", "before", "after")}
    return {key: text if len(text) <= most else text[:most] + " …" for key, text in texts.items()}


def _short(value: float) -> float:
    """Five digits are more than a plot can show."""
    return float(f"{value:.5g}")
