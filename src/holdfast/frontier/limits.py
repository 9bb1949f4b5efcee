"""Which ways end in plain fine-tuning as what they vary goes to nothing: its point is then on their curve."""

from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.way import Way
from holdfast.recipe import flat

WEIGHTS = ("strength", "distill", "together")  # at 0 they hold nothing
BASED = ("training.learning_rate", "training.weight_decay")  # at the base's value they are plain fine-tuning's
WITHOUT_END = ("budget",)  # a large one holds nothing
TRAINED = ("method", "rank", "alpha", "tuner", "parameters", "targets", "training")


def ends_in_plain(recipe: FrontierRecipe) -> list[str]:
    """The names of those ways; what holds with a fixed weight, or trains otherwise, is none."""
    return [way.name for way in recipe.running() if _ends(way, recipe)]


def _ends(way: Way, recipe: FrontierRecipe) -> bool:
    axes, fixed = way.axes(recipe.base), way.fixed()
    if not axes or not set(axes) <= {*WEIGHTS, *BASED, *WITHOUT_END}:
        return False
    if any(key.split(".")[0] in TRAINED for key in fixed):
        return False
    if {"together", *WITHOUT_END} & set(axes):
        return True
    held = {**flat(recipe.base.model_dump()), **fixed}
    anchored = bool(held["anchor"] or held["curvature"]) and "strength" not in axes and held["strength"] > 0
    return not anchored and ("distill" in axes or not held["distill"])
