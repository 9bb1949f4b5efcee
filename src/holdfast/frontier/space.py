"""What a study searches: ways and their values as Optuna's parameters, and settings suggested by its sampler."""

from typing import Any

from holdfast.frontier.combination import Setting
from holdfast.frontier.recipe import FrontierRecipe
from holdfast.frontier.values import Range, rounded

WAY = "way"


class Space:
    """The ways of a recipe whose values differ, and where those lie.

    A pareto search suggests among the ways with a range; what has none is run once, and is no part of the space. A
    value's parameter is called `way: key`, since each way has a range of its own.
    """

    def __init__(self, recipe: FrontierRecipe) -> None:
        everything = {way.name: way.axes(recipe.base) for way in recipe.running()}
        self.ways: dict[str, dict[str, Any]] = recipe.ranged() or everything

    def described(self, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
        """A setting as Optuna's parameters and their distributions; none for what is outside the space."""
        if setting.way not in self.ways:
            return {}, {}
        axes = self.ways[setting.way]
        params = {WAY: setting.way, **{_named(setting.way, key): value for key, value in setting.values}}
        spread = {WAY: self._of_ways(), **{_named(setting.way, key): _spread(axes[key]) for key in axes}}
        return params, spread

    def suggested(self, trial: Any) -> Setting:
        """What the study's sampler would try next."""
        way = trial.suggest_categorical(WAY, list(self.ways))
        values = []
        for key, axis in self.ways[way].items():
            name = _named(way, key)
            if isinstance(axis, Range):
                values.append((key, rounded(trial.suggest_float(name, axis.at(0.0), axis.at(1.0), log=axis.log))))
            else:
                values.append((key, trial.suggest_categorical(name, axis)))
        return Setting(way, tuple(values))

    def _of_ways(self) -> Any:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(self.ways))


def _named(way: str, key: str) -> str:
    return f"{way}: {key}"


def _spread(axis: list[Any] | Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(axis, Range):  # its ends rounded, so that a rounded value is never outside
        return FloatDistribution(axis.at(0.0), axis.at(1.0), log=axis.log)
    return CategoricalDistribution(axis)
