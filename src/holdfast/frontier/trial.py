"""One run of a study, in whatever process: `holdfast tune` with what the study's runs share."""

import json
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from holdfast import checkpoints
from holdfast.errors import HoldfastError
from holdfast.files import locked
from holdfast.recipe import differences, validate
from holdfast.tune_recipe import TuneRecipe

OnStep = Callable[[int, int], None]
RESULTS = "results.json"


@dataclass(frozen=True)
class Job:
    """What a worker process is asked to do.

    Attributes:
        key: of the trial, for the answer.
        recipe: the tune recipe's values.
        folder: of the run.
        store: where the study's anchors are kept.
    """

    key: int
    recipe: dict[str, Any]
    folder: Path
    store: Path


def run(job: Job, on_step: OnStep) -> dict[str, Any]:
    """Train and measure, from the last checkpoint where there is one; returns the row of `results.json`.

    A folder that already holds this recipe's results is read instead: the run had ended, and its end was not told.

    Raises:
        HoldfastError: see `holdfast.tune.tune`.
    """
    from holdfast.anchors.store import Store
    from holdfast.tune import tune

    recipe = validate(TuneRecipe, job.recipe)
    with locked(job.folder.with_name(f".{job.folder.name}.lock")):  # two studies may share a folder of runs
        row = finished(job.folder, recipe)
        if row is None:
            resume = _goes_on(job.folder, recipe)
            say: Callable[[str], None] = lambda line: print(line, flush=True)  # noqa: E731
            results = tune(
                recipe, job.folder, resume=resume, say=say, store=Store(job.store), on_step=on_step, report=False
            )
            row = results["rows"][0]
        shutil.rmtree(job.folder / checkpoints.FOLDER, ignore_errors=True)  # of use only until the run has ended
    return {**row, "host": socket.gethostname()}


def finished(folder: Path, recipe: TuneRecipe) -> dict[str, Any] | None:
    """The row of a run that has ended with this recipe, None where there is none."""
    try:
        written = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        theirs = yaml.safe_load((folder / checkpoints.RECIPE).read_text(encoding="utf-8"))
        row = written["rows"][0]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    if not isinstance(theirs, dict) or differences(theirs, recipe.model_dump(mode="json")):
        return None
    return row


def _goes_on(folder: Path, recipe: TuneRecipe) -> bool:
    """Whether there is a whole checkpoint of this recipe."""
    from holdfast.recipe import dump

    if not checkpoints.whole(folder):
        return False
    try:
        checkpoints.check_recipe(checkpoints.last(folder), dump(recipe))
    except HoldfastError:
        return False
    return True


def check(recipes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that would stop a run, found before any starts: names, folders, data, the model.

    Returns:
        What the two sides are, and a fingerprint of each: machines that join must have the same.

    Raises:
        HoldfastError: see `holdfast.tune.tune`.
    """
    from holdfast.data import check_tokenizer
    from holdfast.holding import Holding
    from holdfast.language_model import load_model, load_tokenizer
    from holdfast.sides import SELF, fingerprint, read_side
    from holdfast.tuning_method import check_held, tuner_of

    settings = [validate(TuneRecipe, values) for values in recipes]
    holdings = []
    for recipe in settings:
        tuner = tuner_of(recipe)
        holdings.append(Holding(recipe, lambda line: None))
        check_held(tuner, recipe, holdings[-1])
    first = settings[0]
    model, tokenizer = load_model(first.model, first.dtype), load_tokenizer(first.model)
    check_tokenizer(tokenizer, model, length=first.length)
    for holding in holdings:
        holding.check(model)
    _check_sizes(settings, model)
    told: dict[str, Any] = {}
    for name, data in (("target", first.target), ("source", first.source)):
        if data is not None and data.path == SELF:
            about = {"path": SELF, "description": "text sampled from the model itself", "item": "token"}
            rows, sequences = None, first.samples
        elif data is not None:
            side = read_side(data, tokenizer, first.length, first.held_out)
            about, rows, sequences = side.about, fingerprint(side), len(side.rows)
        told[name] = {"about": about, "rows": rows, "sequences": sequences}
    return told


def _check_sizes(settings: Sequence[TuneRecipe], model: Any) -> None:
    """Raise HoldfastError for a budget of parameters that a way's method can't keep on this model."""
    from holdfast.tuning_method import sized, tuner_of

    for recipe in {str((r.method, r.tuner, r.targets, r.parameters)): r for r in settings}.values():
        sized(tuner_of(recipe), model, recipe.targets, recipe.parameters)
