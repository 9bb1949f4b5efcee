"""Results of several runs as one: what is comparable stays together, and what is not is told apart and said."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.report.distinguishing import held, panel_names, panel_of, tell_apart
from holdfast.report.page import check

FILE = "results.json"
SIDES = ("source", "target")


@dataclass(frozen=True)
class Part:
    """One results file: what the page calls it, and its content."""

    name: str
    path: Path
    results: Mapping[str, Any]


def read(paths: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """The results of folders, or of files named directly, and notes on what was named twice.

    Raises:
        HoldfastError: nothing there, a file that is not a run's results, or results of another schema.
    """
    files: dict[Path, Path] = {}
    notes = []
    for path in map(Path, paths):
        file = _file(path)
        if file.resolve() in files:
            notes.append(f"{path} was named twice and counts once.")
        files.setdefault(file.resolve(), file)
    names = _names([*files])
    return [Part(names[file], shown, _load(shown)) for file, shown in files.items()], notes


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise HoldfastError(f"{path} does not exist", wanted=f"folders with a {FILE}, or such files")
    if (path / FILE).is_file():
        return path / FILE
    inside = sorted(str(found.parent) for found in path.glob(f"*/{FILE}"))
    raise HoldfastError(
        f"{path} holds no {FILE}",
        wanted="a folder that holdfast tune, demo, frontier or evaluate wrote",
        causes=["the run has not finished", "it is a folder of runs"] if inside else ["the run has not finished"],
        remedy=f"name the runs in it: {' '.join(inside[:3])}{' ...' * (len(inside) > 3)}" if inside else "",
    )


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise HoldfastError(
            f"{path} can't be read as JSON: {error}", wanted=f"a {FILE} that Holdfast wrote"
        ) from error
    if not isinstance(content, Mapping):
        raise HoldfastError(f"{path} holds no object", wanted=f"a {FILE} that Holdfast wrote")
    check(content, str(path))
    losses = [f"{side}_after" for side in SIDES]
    if not any(isinstance(row.get(key), (int, float)) for row in content["rows"] for key in losses):
        raise HoldfastError(
            f"{path}: no row has a loss after training",
            wanted=" or ".join(losses),
            causes=["it is the file of a benchmark that trains nothing"],
        )
    return content


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """The shortest ends of the paths that tell them apart; the name `results.json` is left out."""
    parts = {file: (file.parent if file.name == FILE else file.with_suffix("")).parts for file in files}
    for depth in range(1, max(map(len, parts.values())) + 1):
        names = {file: "/".join(part[-depth:]) for file, part in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {file: str(file) for file in files}  # x.json beside a folder x


def merge(parts: Sequence[Part], notes: Iterable[str] = (), title: str | None = None) -> dict[str, Any]:
    """One results object of all rows, in the order of the parts.

    Every row gets `folder` (its part's name), `settings` (its part's), and where needed `panel` (other models or data:
    another plot), `variant` (trained differently) and `added` (held differently).

    Raises:
        HoldfastError: losses in different units.
    """
    if len(parts) == 1:
        only = {**parts[0].results, **({"title": title} if title else {})}
        return only | {"warnings": [*(only.get("warnings") or []), *notes]}
    items = _items(parts)
    rows, copies = _rows(parts)
    warnings = [*notes, *copies, *tell_apart(rows), *_machines(parts), *_warnings(parts)]
    shared = {key: value for key, value in _common(parts, "settings").items() if value is not None}
    return {
        "schema": 1,
        "title": title or " · ".join(part.name for part in parts[:4]) + (" ..." if len(parts) > 4 else ""),
        "question": _question(parts),
        "settings": shared,
        "machine": _common(parts, "machine"),
        "versions": _common(parts, "versions"),
        **{side: _side(parts, side, items[side]) for side in SIDES},
        "rows": rows,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _question(parts: Sequence[Part]) -> str:
    questions = {part.results.get("question") for part in parts}
    asked = questions.pop() if len(questions) == 1 else None
    return asked or f"How do {len(parts)} results compare: {', '.join(part.name for part in parts)}?"


def _items(parts: Sequence[Part]) -> dict[str, str | None]:
    """What each side's losses are per; raises HoldfastError where that differs."""
    found: dict[str, str | None] = {}
    for side in SIDES:
        units = {(part.results.get(side) or {}).get("item"): part.name for part in reversed(parts)}
        units.pop(None, None)
        if len(units) > 1:
            said = ", ".join(f"nats per {unit} in {name}" for unit, name in units.items())
            raise HoldfastError(
                f"{side} losses in different units: {said}",
                wanted="results of one unit: nats per token and per frame can't stand on one axis",
                remedy="report them apart",
            )
        found[side] = next(iter(units), None)
    return found


def _rows(parts: Sequence[Part]) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows with where they are from, and a note for each part that holds copies of another one's."""
    panels = panel_names([panel_of(part.results) for part in parts])
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    notes = []
    for part, panel in zip(parts, panels, strict=True):
        copies: dict[str, int] = {}
        settings = part.results.get("settings") or {}
        for row in part.results["rows"]:
            content = json.dumps([row, settings], sort_keys=True, default=str)
            first = seen.setdefault(content, part.name)
            if first != part.name:
                copies[first] = copies.get(first, 0) + 1
                continue
            rows.append(
                {**row, "hold": held(row, settings), "folder": part.name, "settings": settings, "panel": panel}
            )
        notes += [
            f"{count} of the rows of {part.name} are copies of {name}’s and count once."
            for name, count in copies.items()
        ]
    return rows, notes


def _common(parts: Sequence[Part], key: str) -> dict[str, Any]:
    """What all parts agree on; what they do not is shown by part."""
    found = [part.results.get(key) or {} for part in parts]
    names = dict.fromkeys(name for one in found for name in one)
    common = {name: found[0].get(name) for name in names if all(one.get(name) == found[0].get(name) for one in found)}
    differing = [name for name in names if name not in common]
    apart = {
        part.name: {name: one[name] for name in differing if name in one}
        for part, one in zip(parts, found, strict=True)
    }
    return common | {name: values for name, values in apart.items() if values}


def _side(parts: Sequence[Part], side: str, item: str | None) -> dict[str, Any] | None:
    """The side's data where all parts have the same; else only what its losses are per."""
    known = [about for part in parts if (about := part.results.get(side))]
    if known and all(about == known[0] for about in known):
        return dict(known[0])
    return {"name": f"{side} data", "item": item} if known else None


def _machines(parts: Sequence[Part]) -> list[str]:
    machines = [part.results.get("machine") for part in parts if part.results.get("machine")]
    same = all(machine == machines[0] for machine in machines)
    return (
        []
        if same
        else ["The runs are of different machines: their times and memory can’t be held against each other."]
    )


def _warnings(parts: Sequence[Part]) -> list[str]:
    """Every part's own, with its name unless all have them; and that what a study computed is left out."""
    own = [[str(warning) for warning in part.results.get("warnings") or []] for part in parts]
    shared = [one for one in own[0] if all(one in other for other in own)]
    said = [f"{part.name}: {one}" for part, ones in zip(parts, own, strict=True) for one in ones if one not in shared]
    left = [part.name for part in parts if part.results.get("frontier")]
    if left:
        said.append(
            f"The tables and the recommendation of {', '.join(left)} are of its own rows alone: see its report."
        )
    return shared + said
