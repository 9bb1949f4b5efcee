"""`holdfast frontier`: one study of many runs, alone or with other machines, and what it shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.files import output_folder, write_text
from holdfast.frontier import study as studies
from holdfast.frontier.ledger import Ledger
from holdfast.frontier.pool import Pool, checked, default_count
from holdfast.frontier.queue import Queue
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.run import Run, Watch, plan
from holdfast.frontier.space import Space
from holdfast.frontier.storage import has_studies, open_storage, shown, url_of
from holdfast.recipe import dump


def frontier(recipe: FrontierRecipe, out: Path, *, watch: Watch, retry: bool = False) -> dict[str, Any]:
    """Do the runs of a study that nobody has done, and write results.json, report.html and recipe.resolved.yaml.

    The same call goes on after an interruption, and beside others on the same storage: finished runs are never done
    again, killed ones go on from their last checkpoint. A run that fails is recorded with its message.

    Args:
        recipe: what is compared.
        out: folder of the results, the runs and the anchors that they share.
        watch: told how it goes.
        retry: do runs again that failed.

    Raises:
        HoldfastError: bad data or settings, a storage that does not answer, a study made with other settings, no run
            that can be done.
    """
    recipes = [
        recipe.tune_recipe(corner).model_dump(mode="json", exclude_defaults=True) for corner in recipe.corners()
    ]
    url = url_of(recipe.storage, out)
    with output_folder(out):
        count, devices = (recipe.processes, []) if recipe.processes else default_count()
        pool = Pool(count, devices)
        try:
            queue = _joined(recipe, url, retry, lambda: _checked(pool, recipes, watch))
            write_text(out / "recipe.resolved.yaml", dump(recipe.model_copy(update={"storage": _masked(recipe)})))
            run = Run(recipe, out, queue, pool, watch)
            run.all(retry=retry)
        finally:
            pool.close()
        return run.written(report=True)


def _checked(pool: Pool, recipes: list[dict[str, Any]], watch: Watch) -> dict[str, Any]:
    watch.say("Checking model, data and settings ...")
    return checked(pool, recipes)


def _joined(recipe: FrontierRecipe, url: str, retry: bool, check: Callable[[], dict[str, Any]]) -> Queue:
    """The runs of the study at that URL, which is made where there is none; nothing is made before all is checked."""
    space = Space(recipe)
    storage = open_storage(url) if has_studies(url) else None
    study = None if storage is None else studies.find(storage, url, recipe)
    if study is not None and not retry and _complete(recipe, Ledger(study, url)):
        return Queue(study, storage, url, space)
    sides = check()
    storage = storage or open_storage(url)
    study = study or studies.make(
        storage, url, recipe, sides, lambda made: plan(recipe, Queue(made, storage, url, space))
    )
    studies.check_sides(study, url, sides)
    return Queue(study, storage, url, space)


def _masked(recipe: FrontierRecipe) -> str | None:
    return None if recipe.storage is None else shown(recipe.storage)


def _complete(recipe: FrontierRecipe, ledger: Ledger) -> bool:
    """Whether nothing is left to do, here or elsewhere."""
    known = ledger.settings()
    return len(known) >= recipe.settings and ledger.settled() >= len(known) * len(recipe.seeds)
