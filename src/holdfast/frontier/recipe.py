"""The recipe of a frontier: what is compared, on what, and how the runs are spread."""

import itertools
import math
from collections import Counter
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.budgets.budget import Budget
from holdfast.errors import HoldfastError
from holdfast.frontier.combination import Combination, Setting, in_names
from holdfast.frontier.values import Range
from holdfast.frontier.way import Way
from holdfast.frontier.ways import PLAIN, USUAL
from holdfast.recipe import Settings, TrainingSettings, nested, validate
from holdfast.recipe import merge as merged
from holdfast.tune_recipe import TuneRecipe

PER_WAY = 4  # settings of a way with a range, where `trials` does not say
STARTS = (1 / 2, 1 / 6, 5 / 6)  # where in a range a pareto search begins: every way has a curve before it suggests
PARTS = 5  # checkpoints of a run
# Keys that change no run: a study goes on with others.
FREE = ("trials", "processes", "storage", "study", "keep", "accept")


class FrontierRecipe(Settings):
    """One `holdfast frontier` study."""

    base: TuneRecipe = Field(description="what all runs have in common: keys of a tune recipe")
    ways: list[Way] = Field([], validate_default=True, description="names, or mappings of tune keys with a name")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="a list, or how many")
    search: Literal["grid", "pareto"] | None = Field(None, description="None: pareto where a way has a range")
    trials: int | None = Field(None, ge=1, description="settings that a pareto search tries, each with every seed")
    processes: int | None = Field(None, ge=1, description="runs at a time on this machine; None: one per core or GPU")
    storage: str | None = Field(None, description="URL of a database that machines share; None: OUT/study.db")
    study: str = Field("frontier", min_length=1, description="the study's name in the storage")
    along: int = Field(8, ge=0, description="times that each run measures both sides while it trains")
    keep: float = Field(0.90, gt=0, le=1, description="share of plain gain that the recommendation keeps")
    accept: str | float | None = Field(None, description="forgetting that it accepts instead: 0.02, 1%, loss 1%")

    @field_validator("ways", mode="before")
    @classmethod
    def _usual(cls, ways: Any) -> Any:
        return list(USUAL) if ways is None or ways == [] else [ways] if isinstance(ways, (str, dict)) else ways

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, seeds: Any) -> Any:
        return list(range(seeds)) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds

    @field_validator("accept")
    @classmethod
    def _forgetting(cls, accept: str | float | None) -> str | float | None:
        if accept is not None and Budget.parse(accept).unit != "nats":
            raise ValueError("an amount of forgetting in nats or a share of the loss or perplexity")
        return accept

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.base.source is None:
            raise ValueError("base.source is missing: forgetting is measured on it; source: self samples the model")
        if self.base.anchors or self.base.distill or self.base.budget:
            raise ValueError("base holds on already (anchor, curvature or distill): name that as one of the ways")
        if self.base.changed("seed"):
            raise ValueError(f"base.seed={self.base.seed}: seeds names them for all runs")
        _check_ways(self.ways)
        if not self.along and any(way.stops for way in self.ways):
            raise ValueError("along=0: stopping early is read from what runs measure along the way")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is named twice")
        if self.trials is not None and self.searched == "grid":
            raise ValueError("trials counts what a pareto search tries, and this is a grid: leave it out")
        return self

    @property
    def searched(self) -> str:
        """Grid, or pareto."""
        ranged = any(isinstance(v, Range) for way in self.ways for v in way.axes(self.base).values())
        return self.search or ("pareto" if ranged else "grid")

    def running(self) -> list[Way]:
        """The ways that have runs of their own."""
        return [way for way in self.ways if way.stops is None]

    @property
    def plain(self) -> str | None:
        """The way that changes nothing: plain fine-tuning."""
        return next((way.name for way in self.running() if not way.keys), None)

    def ranged(self) -> dict[str, dict[str, list[Any] | Range]]:
        """The ways that a pareto search spreads: name -> key -> values; none in a grid."""
        if self.searched == "grid":
            return {}
        axes = {way.name: way.axes(self.base) for way in self.running()}
        return {name: own for name, own in axes.items() if any(isinstance(v, Range) for v in own.values())}

    def planned(self) -> list[Setting]:
        """The settings that are run whatever is found.

        A grid is all of its values. A pareto search begins with what has no range and the middle of every range, and
        then goes to their sides, as far as `trials` reaches.
        """
        ranged, trials = self.ranged(), self.trials
        if not ranged:
            return [setting for way in self.running() for setting in self._product(way, None)]
        first = [setting for way in self.running() for setting in self._product(way, STARTS[0])]
        sides = [
            s
            for share in STARTS[1:]
            for way in self.running()
            if way.name in ranged
            for s in self._product(way, share)
        ]
        return [*first, *(sides if trials is None else sides[: max(0, trials - len(first))])]

    def _product(self, way: Way, share: float | None) -> list[Setting]:
        """A way's settings: every value of its lists, and of ranges the one at that share, or those of a grid."""
        axes = way.axes(self.base)
        lists = [
            values if isinstance(values, list) else values.grid() if share is None else [values.at(share)]
            for values in axes.values()
        ]
        return [Setting(way.name, tuple(zip(axes, each, strict=True))) for each in itertools.product(*lists)]

    @property
    def settings(self) -> int:
        """How many settings are run in all, each with every seed."""
        planned = len(self.planned())
        return max(planned, self.trials or planned + (PER_WAY - len(STARTS)) * len(self.ranged()))

    def tune_recipe(self, combination: Combination, sequences: int | None = None) -> TuneRecipe:
        """The recipe of one run.

        Args:
            combination: which run.
            sequences: how many are trained on, for the steps of an epoch; None: nobody knows yet.

        Raises:
            HoldfastError: keys that do not go together, with the way's name.
        """
        way = next(way for way in self.ways if way.name == combination.setting.way)
        keys = {**way.fixed(), **dict(combination.setting.values), "seed": combination.seed}
        # What is at its default is left out: a run's recipe sees it as not given.
        values = merged(self.base.model_dump(mode="json", exclude_defaults=True), nested(keys))
        try:
            settings = validate(TuneRecipe, values).training
            steps = settings.steps if settings.steps > 0 else _steps(settings, sequences)
            often = {"save_steps": settings.save_steps or max(1, steps // PARTS)}
            if self.along:
                often["eval_steps"] = settings.eval_steps or max(1, steps // self.along)
            values["training"] = {**values.get("training", {}), **often}
            return validate(TuneRecipe, values)
        except HoldfastError as error:
            raise HoldfastError(f"way {way.name!r}: {error.got}", wanted=error.wanted) from error

    def corners(self) -> list[Combination]:
        """One run of every extreme: what is wrong with a way is wrong with one of these."""
        ends = []
        for way in self.running():
            axes = way.axes(self.base)
            lists = [[v.at(0.0), v.at(1.0)] if isinstance(v, Range) else v for v in axes.values()]
            ends += [Setting(way.name, tuple(zip(axes, each, strict=True))) for each in itertools.product(*lists)]
        return [Combination(setting, self.seeds[0]) for setting in ends]


def _steps(training: TrainingSettings, sequences: int | None) -> int:
    """Those of the epochs."""
    batches = math.ceil((sequences or 1) / training.batch_size)
    return math.ceil(training.epochs * math.ceil(batches / training.accumulate))


def _check_ways(ways: list[Way]) -> None:
    names = Counter(in_names(way.name) for way in ways)
    twice = [way.name for way in ways if names[in_names(way.name)] > 1]
    if twice:
        raise ValueError(f"ways: {twice[0]!r} is named twice, or like another when its folder is named")
    running = {way.name for way in ways if way.stops is None}
    for way in ways:
        if way.stops is not None and way.stops not in running:
            raise ValueError(f"way {way.name!r} stops {way.stops!r} early, which is not among the ways: add it")
    if not running:
        raise ValueError(f"ways: none of them has runs of its own; add {PLAIN}")
