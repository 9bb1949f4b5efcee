"""What a study leaves: rows in the house form, and what can be said of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.budgets.budget import Budget
from holdfast.frontier import costs, pareto, points
from holdfast.frontier.combination import Combination, leaf
from holdfast.frontier.limits import ends_in_plain
from holdfast.frontier.matched import Compared
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.recommendation import recommend
from holdfast.frontier.ways import PLAIN
from holdfast.report.comparison import number
from holdfast.report.comparison import span as spanned

Row = dict[str, Any]


def ordered(recipe: FrontierRecipe, done: Iterable[tuple[Combination, Row]]) -> list[Row]:
    """The finished runs' rows, by way, value and seed; each says which way it is of and with which values."""
    place = {way.name: index for index, way in enumerate(recipe.ways)}
    known = sorted(done, key=lambda run: (place[run[0].setting.way], _sortable(run[0]), run[0].seed))
    return [_row(combination, row) for combination, row in known]


def _sortable(combination: Combination) -> list[tuple[bool, float, str]]:
    values = (value for _, value in combination.setting.values)
    return [(isinstance(v, str), 0.0, v) if isinstance(v, str) else (False, float(v or 0), "") for v in values]


def _row(combination: Combination, row: Row) -> Row:
    setting = combination.setting
    return {
        **row,
        "way": setting.way,
        "setting": setting.words,
        "values": {leaf(key): value for key, value in setting.values},
        "seed": combination.seed,
        "run": combination.name,
    }


def analysed(recipe: FrontierRecipe, rows: Sequence[Row]) -> dict[str, Any]:
    """The tables of `results["frontier"]`, and the recommendation."""
    runs = points.settings(rows)
    early = [
        setting
        for way in recipe.ways
        if way.stops is not None
        for setting in points.stopped(rows, way.stops, way.name)
    ]
    ways = points.by_way([*runs, *early])
    plain = ways.get(recipe.plain or "", [])
    before = {side: _median(rows, f"{side}_before") for side in ("source", "target")}
    accept = None if recipe.accept is None else Budget.parse(recipe.accept).limit(before["source"])
    limits = ends_in_plain(recipe) if recipe.plain else []
    ends = {way.name for way in recipe.ways if way.stops is not None and way.stops == recipe.plain}
    compared = Compared(ways, plain, {*limits, *ends}, before)
    return {
        "recommendation": recommend([*runs, *early], plain, keep=recipe.keep, accept=accept, item="token"),
        "pareto": pareto.table([*runs, *early]),
        "hypervolume": pareto.hypervolume([*runs, *early]),
        "matched_learning": compared.learning(),
        "matched_forgetting": compared.forgetting([] if accept is None else [accept]),
        "costs": costs.table(rows, recipe.plain or PLAIN),
    }


def _median(rows: Sequence[Row], key: str) -> float | None:
    found = spanned(number(row, key) for row in rows)
    return None if found is None else found.median


def whole(
    recipe: FrontierRecipe, rows: Sequence[Row], sides: dict[str, Any], failures: Sequence[tuple[Combination, str]]
) -> dict[str, Any]:
    """`results.json`."""
    from holdfast.machine import machine, versions

    settings = recipe.model_dump(mode="json")
    about = {side: sides.get(side, {}).get("about") for side in ("source", "target")}
    return {
        "schema": 1,
        "title": "Learning against forgetting",
        "question": f"How much of {recipe.base.target.path} can {recipe.base.model} learn, at what forgetting?",
        "settings": settings,
        "machine": machine(),
        "versions": versions(),
        **about,
        "rows": list(rows),
        "frontier": analysed(recipe, rows),
        "failed": [{**run.attributes(), "run": run.name, "message": message} for run, message in failures],
        "warnings": list(_warnings(recipe, rows, about, failures)),
    }


def _warnings(
    recipe: FrontierRecipe, rows: Sequence[Row], about: dict[str, Any], failures: Sequence[tuple[Combination, str]]
) -> Iterable[str]:
    if len(recipe.seeds) == 1:
        yield "One seed: how far results differ between seeds is not known."
    if len(recipe.seeds) == 2:
        yield "Two seeds: their intervals are wide; three or more tell ways apart far sooner."
    if (about["source"] or {}).get("path") == "self":
        yield "Forgetting was measured on text that the model sampled itself, not on its original data."
    if recipe.plain is None:
        yield "Plain fine-tuning is not among the ways: nothing is said in shares of it."
    for run, message in failures:
        yield f"{run.words} failed: {message.splitlines()[0]}"
    missing = recipe.settings * len(recipe.seeds) - len(rows) - len(failures)
    if missing > 0:
        yield f"{missing} runs are still to be done."
