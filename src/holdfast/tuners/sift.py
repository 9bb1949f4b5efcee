"""Sparse fine-tuning in place."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from holdfast.errors import HoldfastError, closest
from holdfast.recipe import Settings
from holdfast.targets import Targets, matching, select
from holdfast.tuners.tuner import Tuner
from holdfast.tuners.wrapping import wrapped


class SiftOptions(Settings):
    """Of SIFT; see `holdfast.SiftConfig`."""

    density: float | None = Field(None, gt=0, le=1, description="share of each tensor's entries; 0.01 without count")
    count: int | None = Field(None, ge=1, description="entries in all, instead of density")
    scope: Literal["tensor", "row", "global"] = Field("tensor", description="where entries compete")
    floor: float = Field(0.0, ge=0, le=1, description="least share of one tensor, for scope global")
    ceiling: float = Field(1.0, ge=0, le=1, description="most share of one tensor, for scope global")
    score: str = Field("gradient", description="what entries compete by")
    batches: int = Field(1, ge=1, description="batches that are scored together")
    refresh: int = Field(0, ge=0, description="choose again every so many steps; 0: never")
    biases: bool = Field(False, description="the targets' biases compete too")
    decay_to: Literal["zero", "start"] = Field("zero", description="what weight decay pulls the entries to")
    seed: int = Field(0, description="of the random score and of the batches that are chosen on")

    @field_validator("score")
    @classmethod
    def _known(cls, score: str) -> str:
        from holdfast.sift.scores import SCORES

        if score not in SCORES:
            near = closest(score, SCORES)
            wanted = f"it should be one of {', '.join(SCORES)}"
            raise ValueError(f"{wanted}; did you mean {near}?" if near else wanted)
        return score

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.count is not None and self.density is not None:
            raise ValueError(f"density={self.density:g} and count={self.count} both say how many: leave one out")
        return self


class Sift(Tuner):
    """A few chosen entries of the model's own weights train, in place.

    The entries are chosen before anything else sees the model, so that what is counted from the start of training
    (anchors of the adapter, budgets) starts where training does.
    """

    name = "sift"
    paper = "SIFT, arXiv 2312.11875"
    Options = SiftOptions
    sizes = ("count", "density")
    counts = True
    registered_by = "holdfast.sift"
    options: SiftOptions

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        from holdfast.sift import SiftConfig

        return wrapped(model, SiftConfig, target_modules=sorted(_layers(model, targets)), **self.options.model_dump())

    def wants(self) -> int:
        from holdfast.sift.scores import score_of

        return self.options.batches if score_of(self.options.score).gradient else 0

    def ready(self, model: nn.Module, batches: Sequence[Any]) -> None:
        from holdfast.sift.selection import select as choose

        choose(model, batches or None)

    @property
    def steady(self) -> bool:
        return not self.options.refresh

    def callbacks(self) -> list[Any]:
        from holdfast.sift.callback import SiftCallback

        return [SiftCallback(progress=False)]


def _layers(model: nn.Module, targets: Targets) -> Collection[str]:
    """The targeted layers of a known kind, as other methods have them; where there are others as well, those too.

    SIFT trains in norms and whatever else has a weight, which is no matrix to other methods and to anchors.
    """
    try:
        return select(model, targets)
    except HoldfastError:
        weighted = [
            name for name, one in model.named_modules() if isinstance(getattr(one, "weight", None), nn.Parameter)
        ]
        return matching(targets, weighted)
