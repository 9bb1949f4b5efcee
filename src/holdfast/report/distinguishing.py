"""What tells runs of different results apart: other models or data, other training, another way of holding on."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.report.comparison import Row, compare, number

# Of the settings: what a row or its `hold` says itself, or what changes nothing that is compared.
_SAID = (
    "model", "target", "source", "strength", "budget", "distill", "seed", "seeds", "curvature", "method", "forecast",
    "steering", "looks", "measured_tokens",
    "training.log_steps", "training.save_steps", "training.eval_steps", "training.report_to",
)  # fmt: skip
# How a run holds on, beside how hard: told apart among rows of one penalty, and compared with the same plain run.
_HOLDING = (
    "anchor", "anchor_weights", "space", "fisher", "per", "draws", "keep", "max_items", "form", "damping", "prior",
    "distill_sequences", "distill_every", "distill_top_k", "together", "samples", "sample_length",
)  # fmt: skip
Panel = tuple[str | None, str | None, str | None]  # model, target, source; None where it is not known


def held(row: Row, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `hold` of a row: its own, or how hard its settings say that it held on."""
    if row.get("hold"):
        return dict(row["hold"])
    anchored = row.get("form") is not None or settings.get("anchor") or settings.get("curvature")
    found = {"strength": number(settings, "strength") if anchored else None, "distill": number(settings, "distill")}
    return {} if row.get("budget") is not None else {key: value for key, value in found.items() if value}


def panel_of(results: Mapping[str, Any]) -> Panel:
    """What results have to share to be compared at all."""
    model = (results.get("settings") or {}).get("model")
    known = None if model is None else str(Path(model).resolve()) if Path(model).exists() else str(model)
    return known, _data(results.get("target")), _data(results.get("source"))


def _data(about: Mapping[str, Any] | None) -> str | None:
    """Name and content of a data set."""
    if not about:
        return None
    name = about.get("name") or Path(str(about.get("path", "data"))).name
    return f"{name} ({about['sha256'][:8]})" if about.get("sha256") else str(name)


def panel_names(panels: Sequence[Panel]) -> list[str]:
    """A name for each, of what differs; empty where all can be compared. What is not known differs from nothing."""
    names = ["" for _ in panels]
    for i, word in enumerate(("", "target ", "source ")):
        values = [panel[i] for panel in panels]
        known = list(dict.fromkeys(value for value in values if value is not None))
        if len(known) < 2:
            continue
        short = _short(known)
        for j, value in enumerate(values):
            said = short.get(value or "", "unknown")
            names[j] += (", " if names[j] else "") + word + said
    return names


def _short(texts: Sequence[str]) -> dict[str, str]:
    """The last parts of paths, and names without the hash of their content, where these tell them apart."""
    last = {text: Path(text).name for text in texts}
    bare = {text: name.partition(" (")[0] for text, name in last.items()}
    return next((names for names in (bare, last) if len(set(names.values())) == len(texts)), {t: t for t in texts})


def tell_apart(rows: list[dict[str, Any]]) -> list[str]:
    """Give rows that differ in more than their seed a `variant` or something `added`; warnings say what differs."""
    warnings = _panels(rows)
    flats = {id(row["settings"]): _flat(row["settings"]) for row in rows}
    for panel in dict.fromkeys(row["panel"] for row in rows):
        own = [row for row in rows if row["panel"] == panel]
        keys = {key for row in own for key in flats[id(row["settings"])]}
        trained = _differing(
            own, flats, (key for key in keys if key not in _SAID and _top(key) not in (*_SAID, *_HOLDING))
        )
        for row in own:
            row["variant"] = _words(flats[id(row["settings"])], trained)
        if trained:
            warnings.append(f"Runs differ in {', '.join(map(_name, trained))}: they are told apart by it.")
        for penalty in dict.fromkeys(row.get("penalty") for row in own):
            alike = [row for row in own if row.get("penalty") == penalty]
            holding = _differing(alike, flats, (key for key in keys if _top(key) in _HOLDING))
            for row in alike:
                row["added"] = _words(flats[id(row["settings"])], holding)
    return warnings + _repeated(rows)


def _panels(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(row["panel"] for row in rows))
    if len(names) < 2:
        return []
    return [
        f"These results are of different models or data ({'; '.join(names)}): each has a plot of its own, and their "
        "losses can’t be held against each other."
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping) and f"{prefix}{key}" not in _SAID
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _top(key: str) -> str:
    return key.partition(".")[0]


def _differing(rows: Sequence[Row], flats: Mapping[int, Mapping[str, Any]], keys: Iterable[str]) -> list[str]:
    """The keys in which rows that have them differ."""
    found = []
    for key in sorted(keys):
        values = {repr(flat[key]) for row in rows if key in (flat := flats[id(row["settings"])])}
        if len(values) > 1:
            found.append(key)
    return found


def _words(flat: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{_name(key)} {_value(flat[key])}" for key in keys if key in flat)


def _name(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(Path(str(one)).name for one in value) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _repeated(rows: Sequence[Row]) -> list[str]:
    """A warning where results of different folders hold the same setting at the same seed."""
    folders: set[tuple[str, ...]] = set()
    for setting in compare(rows):
        for seed in dict.fromkeys(row.get("seed") for row in setting.rows):
            found = dict.fromkeys(row["folder"] for row in setting.rows if row.get("seed") == seed)
            if len(found) > 1:
                folders.add(tuple(found))
    return [
        f"{' and '.join(found)} hold runs of the same settings and seed: each counts as a run of its own."
        for found in sorted(folders)
    ]
