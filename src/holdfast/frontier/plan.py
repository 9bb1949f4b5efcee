"""What a study will do, and what became of it so far: read, with nothing run or made."""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from holdfast.frontier import study as studies
from holdfast.frontier.ledger import Ledger, combination_of, is_lost
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.storage import has_studies, open_storage, url_of

STATES = {"COMPLETE": "done", "RUNNING": "running", "FAIL": "failed", "WAITING": "waiting"}


def planned(recipe: FrontierRecipe, out: Path) -> dict[str, Any]:
    """Every setting with its runs by state, how many settings will be suggested, and the time of a run so far.

    Raises:
        HoldfastError: ways that can't be run, a storage that does not answer, a study made with other settings.
    """
    for corner in recipe.corners():
        recipe.tune_recipe(corner)
    url = url_of(recipe.storage, out)
    trials: list[Any] = []
    if has_studies(url):
        study = studies.find(open_storage(url), url, recipe)
        trials = [] if study is None else [t for t in Ledger(study, url).trials() if not is_lost(t)]
    seeds = len(recipe.seeds)
    counts: dict[Any, Counter[str]] = {setting: Counter() for setting in recipe.planned()}
    for combination, state in {combination_of(t): STATES[t.state.name] for t in trials}.items():  # the last one counts
        counts.setdefault(combination.setting, Counter())[state] += 1
    rows = [
        {"way": setting.way, "setting": setting.words, "runs": seeds, **{s: count[s] for s in STATES.values()}}
        for setting, count in counts.items()
    ]
    for row in rows:
        row["waiting"] = seeds - row["done"] - row["running"] - row["failed"]
    took = [t.duration.total_seconds() for t in trials if t.state.name == "COMPLETE"]
    return {
        "search": recipe.searched,
        "seeds": list(recipe.seeds),
        "settings": recipe.settings,
        "runs": recipe.settings * seeds,
        "to_be_suggested": max(0, recipe.settings - len(counts)),
        "seconds_per_run": statistics.median(took) if took else None,
        "rows": rows,
    }
