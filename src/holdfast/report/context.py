"""What the page's template is given: everything that is computed, in the names that it uses."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.report import budgets, study, words
from holdfast.report.canvas import canvas, dash_of, series_key, several_families
from holdfast.report.comparison import Setting, able, by_series, compare, least_forgetting, representatives, validated
from holdfast.report.continuations import continuations
from holdfast.report.finding import KEEP, finding, forecast_sentence, support
from holdfast.report.palette import INK, styles
from holdfast.report.plots import CONFIG, plots
from holdfast.report.runs import entries, identify, thinning

KEEPS = (0.98, 0.95, 0.90, 0.80)  # shares of plain gain in the table of choices
CROWD = 12  # settings; above, a search field helps


def context(results: Mapping[str, Any]) -> dict[str, Any]:
    """All that the template reads; `results` as `page.write` takes them, already checked."""
    settings = compare(results["rows"])
    items = {side: (results.get(side) or {}).get("item") or "item" for side in ("source", "target")}
    chosen = representatives(settings, KEEP)
    style = styles(s.series for s in settings)
    ids = identify(settings)
    computed = results.get("frontier") or {}
    best = study.best(computed, settings)
    shared = results.get("settings") or {}
    return {
        **_given(results),
        "settings": settings,
        "style": style,
        "ids": ids,
        "chosen": chosen,
        "best": best,
        "listings": study.listings(computed),
        "data": _json({"runs": entries(settings, style, ids, items, shared), **_drawing()}),
        "thinning": thinning(settings),
        "prompts": continuations(chosen),
        "forecast_sentence": forecast_sentence(settings),
        "held": budgets.budgeted(settings),
        "validated": validated(results["rows"]),
        "item": items["target"],
        "source_item": items["source"],
        "perplexity": {side: item == "token" for side, item in items.items()},
        "sides": [side for side in ("source", "target") if any(s.span(f"{side}_after") for s in settings)],
        "keep": KEEP,
        "ink": INK,
        "words": words,
        "budgets": budgets,
        **_sentences(results, settings, items["target"], study.recommendation(computed)),
        **_tables(settings, chosen, style),
        **_filters(results["rows"], settings),
        **plots(settings, chosen, style, items, ids, best),
    }


def _given(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the results say themselves."""
    return {
        "question": results.get("question") or "",
        "title": results.get("title") or "Learning and forgetting",
        "warnings": results.get("warnings") or [],
        "source": _name(results.get("source") or {}, "source data"),
        "target": _name(results.get("target") or {}, "target data"),
        "details": {name: flat(results[name]) for name in ("settings", "machine", "versions") if results.get(name)},
    }


def _drawing() -> dict[str, Any]:
    """How the panel's plots look: as the page's."""
    return {"layout": canvas("", "", 240).layout.to_plotly_json(), "config": CONFIG}


def _json(value: Any) -> str:
    """JSON that nothing inside a script element can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _name(data: Mapping[str, Any], otherwise: str) -> str:
    """What the page calls a data set."""
    path = str(data.get("path") or otherwise)
    return data.get("name") or ("text of the model’s own" if path == "self" else Path(path).name or path)


def _families(settings: Sequence[Setting]) -> list[list[Setting]]:
    families = dict.fromkeys(s.family for s in settings)
    return [[s for s in settings if s.family == family] for family in families]


def _sentences(
    results: Mapping[str, Any], settings: Sequence[Setting], item: str, recommendation: str
) -> dict[str, Any]:
    """The headline and what stands below it; a study's recommendation goes first."""
    families = _families(settings)
    headline, *others = [
        (f"{words.family_name(group[0])}: " if len(families) > 1 else "") + finding(group, item) for group in families
    ]
    said = [*support(families[0], item, validated(results["rows"])), *others]
    if len(settings) > 1 and (kept := budgets.kept(settings)):
        said.append(kept)
    if recommendation:
        said, headline = [headline, *said], recommendation
    return {"headline": headline, "support": said}


def _tables(settings: Sequence[Setting], chosen: Sequence[Setting], style: Mapping[Any, Any]) -> dict[str, Any]:
    families, plain = _families(settings), next((s for s in settings if s.is_plain), None)
    bars = _bars(settings, chosen)
    dashes = [f"{dash_of(group[0], settings, dict(style))} for {words.family_name(group[0])}" for group in families]
    return {
        "series": _series(settings, style),
        "dashes": dashes,
        "many": several_families(settings),
        "compared": len(settings) > 1 and any(s.kept or s.share for s in settings),
        "choices": _choices(settings),
        "bars": bars,
        "widest": max([1.0, *(forgot for _, forgot in bars if forgot)]),
        "least": least_forgetting(families[0], KEEP),
        "costs": any(s.span(key) for s in settings for key in ("seconds", "seconds_per_step", "peak_memory_mb")),
        "plain_step": words.middle(plain.span("seconds_per_step")) if plain else None,
    }


def _filters(rows: Sequence[Mapping[str, Any]], settings: Sequence[Setting]) -> dict[str, Any]:
    """What there is to choose from; nothing where a choice would be between one."""
    families = list(dict.fromkeys(words.family_name(s) for s in settings))
    seeds = list(dict.fromkeys(str(row.get("seed", words.MISSING)) for row in rows))
    return {
        "families": families if len(families) > 1 else [],
        "seeds": seeds if len(seeds) > 1 else [],
        "search": len(settings) > CROWD,
        "runs": len(rows),
    }


def _series(settings: Sequence[Setting], style: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """One entry of the key for each penalty, and its settings."""
    many = several_families(settings)
    return [
        {
            "key": series_key(members[0]),
            "name": words.penalty_name(members[0].penalty),
            "method": words.family_name(members[0]) if many else "",
            "meaning": words.meaning(members[0].penalty),
            "style": style[members[0].series],
            "settings": members,
        }
        for members in by_series(settings)
    ]


def _choices(settings: Sequence[Setting]) -> list[tuple[float, Setting]]:
    """For each share of plain gain that a user may want, the setting that forgets least."""
    if len([s for s in settings if not s.is_plain]) < 2 or several_families(settings):
        return []
    found: list[tuple[float, Setting]] = []
    for keep in KEEPS:
        setting = least_forgetting(settings, keep)
        if setting is not None and (not found or found[-1][1] is not setting):
            found.append((keep, setting))
    return found if len(found) > 1 else []


def _bars(settings: Sequence[Setting], chosen: Sequence[Setting]) -> list[tuple[Setting, float | None]]:
    """Each penalty's least forgetting at the gain that the finding asks for, rising; None where it kept less."""
    if len(chosen) < 2 or not any(s.share for s in settings) or len({s.panel for s in settings}) > 1:
        return []
    keeping = able(chosen, KEEP)
    rising = sorted(keeping, key=lambda s: s.share.median if s.share else math.inf)
    return [(s, words.middle(s.share)) for s in rising] + [(s, None) for s in chosen if s not in keeping]


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text."""
    if not isinstance(value, Mapping):
        listed = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return {prefix: "–" if value is None else listed}
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found
