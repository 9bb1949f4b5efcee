"""The study in its storage: made once, with its settings; joined by whoever has the same."""

import time
from collections.abc import Callable
from typing import Any

from holdfast.errors import HoldfastError
from holdfast.frontier.recipe import FREE, FrontierRecipe
from holdfast.frontier.storage import patiently, shown
from holdfast.recipe import differences

SETTINGS, SIDES = "settings", "sides"  # the study's attributes
OBJECTIVES = ["target loss", "forgetting"]
PLAIN_KEYS = "as the base"  # of a way without keys: an empty mapping would not be seen to be missing
WAIT = 10  # seconds without another planned run, after which the process that made a study counts as dead


def settings_of(recipe: FrontierRecipe) -> dict[str, Any]:
    """What all machines of a study must have alike; ways by their names."""
    values = recipe.model_dump(mode="json", exclude=set(FREE))
    ways = {way.name: {**({} if way.stops is None else {"stops": way.stops}), **way.keys} for way in recipe.ways}
    return {**values, "search": recipe.searched, "ways": {name: keys or PLAIN_KEYS for name, keys in ways.items()}}


def find(storage: Any, url: str, recipe: FrontierRecipe) -> Any | None:
    """The study of the recipe's name, None where there is none, or one whose maker has died over it.

    Raises:
        HoldfastError: it was made with other settings.
    """
    import optuna

    try:
        study = patiently(url, lambda: optuna.load_study(study_name=recipe.study, storage=storage))
    except KeyError:
        return None
    theirs = _settings(study, url)
    if theirs is None:
        _check_own(study, url)
        return None
    changed = differences(theirs, settings_of(recipe))
    if changed:
        raise HoldfastError(
            f"the study {recipe.study!r} in {shown(url)} was made with other settings: {', '.join(changed[:5])}"
            + (f" and {len(changed) - 5} more" if len(changed) > 5 else ""),
            wanted="the same settings; only trials (how many), processes, keep and accept may differ",
            remedy="choose another --out, or in a shared storage another name: --set study=NAME; nothing was changed",
        )
    return study


def make(storage: Any, url: str, recipe: FrontierRecipe, sides: dict[str, Any], plan: Callable[[Any], None]) -> Any:
    """A new study with its runs planned; where another process is making it, that one.

    Its settings are written last: who finds them finds the whole plan, and does not plan it again.

    Args:
        storage: Optuna's.
        url: of the storage.
        recipe: whose study it is.
        sides: what is learned and what is remembered: see `holdfast.frontier.trial.check`.
        plan: adds the runs to the study.

    Raises:
        HoldfastError: another process has made it with other settings or data.
    """
    import optuna

    directions: list[Any] = ["minimize"] * len(OBJECTIVES)
    try:
        study = patiently(
            url, lambda: optuna.create_study(storage=storage, study_name=recipe.study, directions=directions)
        )
    except optuna.exceptions.DuplicatedStudyError:
        found = find(storage, url, recipe)
        if found is not None:
            check_sides(found, url, sides)
            return found
        study = patiently(url, lambda: optuna.load_study(study_name=recipe.study, storage=storage))
    patiently(url, study.set_metric_names, OBJECTIVES)
    patiently(url, study.set_user_attr, SIDES, sides)
    plan(study)
    patiently(url, study.set_user_attr, SETTINGS, settings_of(recipe))
    return study


def check_sides(study: Any, url: str, sides: dict[str, Any]) -> None:
    """Raise HoldfastError where this machine's data are not those of the study."""
    theirs = _attribute(study, url, SIDES) or {}
    for name, side in sides.items():
        if theirs.get(name, {}).get("rows") != side["rows"]:
            raise HoldfastError(
                f"the {name} data is not what the study in {shown(url)} was made with",
                wanted=f"{theirs.get(name, {}).get('about', {}).get('description', 'the same data')}",
                causes=[
                    "a file was changed since",
                    "this machine has another copy",
                    "the tokenizer was changed since",
                ],
                remedy="bring the data back, or choose another --out; nothing was changed",
            )


def sides_of(study: Any, url: str) -> dict[str, Any]:
    """What is learned and what is remembered: `about` and `rows` of each."""
    return _attribute(study, url, SIDES) or {}


def _attribute(study: Any, url: str, name: str) -> Any:
    return patiently(url, lambda: study.user_attrs).get(name)


def _settings(study: Any, url: str) -> Any:
    """The study's settings, waited for as long as another process is planning its runs."""
    known, since = -1, time.monotonic()
    while time.monotonic() - since < WAIT:
        found = _attribute(study, url, SETTINGS)
        if found is not None:
            return found
        count = len(patiently(url, study.get_trials, False))
        if count != known:
            known, since = count, time.monotonic()
        time.sleep(0.2)
    return None


def _check_own(study: Any, url: str) -> None:
    """Raise HoldfastError for a study without settings that another program has made."""
    trials = patiently(url, study.get_trials, False)
    if len(study.directions) != len(OBJECTIVES) or any("way" not in trial.user_attrs for trial in trials):
        raise HoldfastError(
            f"the study {study.study_name!r} in {shown(url)} is not one of holdfast frontier",
            remedy="give this one another name: --set study=NAME",
        )
