"""What a study of many runs computed beside them: its recommendation, its best points and its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.report import words
from holdfast.report.comparison import Setting, Span, number

TITLES = {
    "pareto": "Settings that nothing beats in both learning and forgetting",
    "matched_learning": "Forgetting at equal learning",
    "matched_forgetting": "Learning at equal forgetting",
    "costs": "Costs",
    "hypervolume": "Hypervolume",
}
FRONT = "on the front"  # the status of a point that nothing beats, where points of every status are listed
_APART = ("recommendation", "reference", "value", "per_way")


@dataclass(frozen=True)
class Listing:
    """A table as the study made it: its own columns, in its own order."""

    title: str
    note: str
    columns: list[str]
    lines: list[list[str]]
    texts: list[bool]  # of each column: whether it holds words, which are read from the left


def recommendation(study: Mapping[str, Any]) -> str:
    """One sentence, or nothing."""
    return str(study.get("recommendation") or "")


def listings(study: Mapping[str, Any]) -> list[Listing]:
    """Every table of the study that has lines, the ones with a title of their own first."""
    order = [*TITLES, *(key for key in study if key not in TITLES and key not in _APART)]
    found = []
    for key in order:
        value, note = study.get(key), ""
        if isinstance(value, Mapping) and "per_way" in value:
            note, value = _area(value), _named(value["per_way"], "way")
        elif isinstance(value, Mapping):
            value = [value]
        rows = [row for row in value if isinstance(row, Mapping)] if isinstance(value, (list, tuple)) else []
        if rows or note:
            found.append(_listing(TITLES.get(key, _heading(key[:1].upper() + key[1:])), note, rows))
    return found


def _area(found: Mapping[str, Any]) -> str:
    """The hypervolume and the point it is measured from."""
    reference = f", measured from {cell(found['reference'])}" if found.get("reference") is not None else ""
    return f"The area that all settings together cover is {cell(found.get('value'))}{reference}: more is better."


def _named(value: Any, name: str) -> Any:
    """{"plain": 0.3} -> [{"way": "plain", "value": 0.3}]."""
    if not isinstance(value, Mapping):
        return value
    return [{name: key, **(inner if isinstance(inner, Mapping) else {"value": inner})} for key, inner in value.items()]


def _listing(title: str, note: str, rows: Sequence[Mapping[str, Any]]) -> Listing:
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    lines = [[cell(row.get(key)) for key in columns] for row in rows]
    texts = [any(isinstance(row.get(key), (str, Mapping)) for row in rows) for key in columns]
    return Listing(title, note, [_heading(key) for key in columns], lines, texts)


def _heading(key: str) -> str:
    return key.replace("_", " ")


def cell(value: Any) -> str:
    """A value as a table shows it; two numbers are an interval."""
    if value is None or value == "":
        return words.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return words.decimals(value) if abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, int):
        return words.whole(value).replace("-", "−")
    if isinstance(value, Mapping):
        return ", ".join(f"{_heading(str(key))}\u00a0{cell(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        numbers = len(value) == 2 and all(isinstance(one, (int, float)) for one in value)
        return (" to " if numbers else ", ").join(cell(one) for one in value) or words.MISSING
    return str(value)


def best(study: Mapping[str, Any], settings: Sequence[Setting]) -> list[Setting]:
    """The page's settings that the study found to be beaten by none: by what they are called, or by where they lie."""
    points = [point for point in study.get("pareto") or [] if isinstance(point, Mapping)]
    points = [point for point in points if point.get("status", FRONT) == FRONT]
    called = {(point.get("way"), point.get("setting")) for point in points} - {(None, None)}
    places = [(number(point, "gain"), number(point, "forgetting")) for point in points if "way" not in point]
    return [s for s in settings if called & {(r.get("way"), r.get("setting")) for r in s.rows} or _lies_at(s, places)]


def _lies_at(setting: Setting, places: Sequence[tuple[float | None, float | None]]) -> bool:
    """Whether the mean or median of gain and forgetting is one of the places, as far as tables are rounded."""
    own = (setting.gain, setting.forgetting)
    return any(all(_is(value, found) for value, found in zip(place, own, strict=True)) for place in places)


def _is(value: float | None, found: Span | None) -> bool:
    return value is not None and found is not None and min(abs(value - m) for m in (found.median, found.mean)) < 5e-4
