"""The recipe of a run, to copy: the keys of `holdfast tune` that its row and its results record."""

from collections.abc import Mapping
from typing import Any

import yaml

from holdfast.errors import HoldfastError
from holdfast.recipe import validate
from holdfast.report.budgets import POINTS, unit_of
from holdfast.report.comparison import Row
from holdfast.tune_recipe import TuneRecipe

_NEEDED = ("model", "target")
_TRAINING = ("learning_rate", "weight_decay")  # of a way of holding on; a recipe has them under `training`
_OWN = ("method", "seed")  # of a row that records no way of holding on


def recipe_text(row: Row, settings: Mapping[str, Any]) -> str:
    """YAML that `holdfast tune` reads.

    What is missing (the data, where the results name none by path) and what no recipe has (replay, for instance)
    stands in comments. A recipe that is complete is written without the keys that are at their defaults.

    Args:
        row: of a run.
        settings: what the results say of all their runs; a row of merged reports brings its own.
    """
    settings = row.get("settings") or settings
    hold = dict(row.get("hold") or {})
    values = {key: value for key, value in settings.items() if key in TuneRecipe.model_fields and value is not None}
    training = {**(values.get("training") or {}), **{key: hold.pop(key) for key in _TRAINING if key in hold}}
    if training:
        values["training"] = training
    if hold.get("distill") and hold.get("distill_source", "self") == "self":
        values.setdefault("source", {"path": "self"})
        hold.pop("distill_source", None)
    own = {key: row[key] for key in _OWN if row.get(key) is not None}
    if row.get("budget") is not None and not values.get("budget"):
        own["budget"] = f"accuracy {row['budget']:g}" if unit_of(row) == POINTS else row["budget"]
    own = {**hold, **own}
    known = {key: value for key, value in own.items() if key in TuneRecipe.model_fields}
    other = {key: value for key, value in own.items() if key not in known}
    lines = [yaml.safe_dump(_short(values | known), sort_keys=False, allow_unicode=True).rstrip()]
    lines += [f"# {key}: name yours here" for key in _NEEDED if key not in values]
    lines += [f"# of the comparison, not a key of a recipe: {key}: {value}" for key, value in other.items()]
    return "\n".join(lines)


def _short(values: dict[str, Any]) -> dict[str, Any]:
    """Without defaults where all of it is a recipe; as recorded where it is not, an older version's for instance."""
    try:
        return validate(TuneRecipe, values).model_dump(mode="json", exclude_defaults=True)
    except HoldfastError:
        return values
