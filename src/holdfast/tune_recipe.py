"""The recipe of a tuning run: everything `holdfast tune` was asked for, validated before anything heavy starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.budgets.budget import Budget
from holdfast.errors import HoldfastError
from holdfast.recipe import SAMPLE_LENGTH, DataSettings, Settings, TrainingSettings, layer_names
from holdfast.tuners.amount import Amount

ITEMS = 200_000  # scored tokens that a curvature is measured on, at most
LOOKS = 24  # as `holdfast.budgets.steering`, which is not imported here: it brings torch
MEASURING = ("space", "fisher", "per", "draws", "keep", "max_items")  # keys that say how `curvature` is measured


class TuneRecipe(Settings):
    """One `holdfast tune` run."""

    model: str
    target: DataSettings
    source: DataSettings | None = None
    anchor: list[Path] = Field([], description="folders; their prices add up")
    anchor_weights: list[float] | None = Field(None, description="one for each anchor, then one for `curvature`")
    forecast: Path | None = Field(None, description="folder of an anchor that only forecasts")
    curvature: str | None = Field(None, description="measured on the source in this run, beside what is stored")
    space: Literal["weights", "adapter"] = Field("weights", description="what `curvature` is measured of")
    fisher: Literal["sampled", "data", "exact"] = "sampled"
    per: Literal["token", "sequence"] | None = Field(None, description="what is squared; None: as suits the curvature")
    draws: int = Field(1, ge=1, description="labels drawn from the model for each item")
    keep: int = Field(256, ge=1, description="examples that curvatures of stored samples keep")
    max_items: int = Field(ITEMS, ge=1, description="stop measuring after so many scored tokens")
    form: str = Field("quadratic", description="the anchor's penalty: a name from the catalogue")
    strength: float = Field(1.0, ge=0)
    budget: list[str] = Field([], description="forgetting accepted, instead of strengths: 0.02, 1%, 'accuracy 0.5'")
    damping: float = Field(0.0, ge=0)
    prior: float = Field(0.0, ge=0, description="precision of the adapter's own parameters, beside their curvature")
    distill: float = Field(0.0, ge=0, description="weight of the distillation; 0 for none")
    distill_from: Literal["source", "self"] = Field(
        "source", description="what is distilled: the source's text, or text sampled from the model"
    )
    distill_sequences: int = Field(4, ge=1)
    distill_every: int = Field(1, ge=1)
    distill_top_k: int | None = Field(None, ge=1)
    together: float | None = Field(
        None, ge=0, description="one strength on the anchor's penalty and the distillation, on top of their own"
    )
    samples: int = Field(256, ge=4, description="sequences sampled from the model for --source self")
    method: str = "lora"
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    tuner: dict[str, Any] = Field({}, description="options of the method's own: `holdfast methods` names them")
    parameters: str | int | None = Field(
        None, description="how many parameters may train: 0.5% of the model's, or 120000; it sets the method's size"
    )
    targets: str | list[str] = "all-linear"
    sample_length: int = Field(SAMPLE_LENGTH, ge=8, description="tokens per sampled sequence")
    length: int = Field(512, ge=2, description="tokens per sequence")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of each data set kept for measuring")
    steering: float = Field(0.1, gt=0, lt=1, description="share of the source that a budget is steered by")
    looks: int = Field(LOOKS, ge=1, description="how often a budget measures over the run")
    training: TrainingSettings = TrainingSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, targets: Any) -> Any:
        return layer_names(targets)

    @field_validator("anchor", mode="before")
    @classmethod
    def _folders(cls, anchor: Any) -> Any:
        return [] if anchor is None else anchor if isinstance(anchor, list) else [anchor]

    @field_validator("parameters")
    @classmethod
    def _amount(cls, parameters: str | int | None) -> str | int | None:
        if parameters is not None:
            try:
                Amount.parse(parameters)
            except HoldfastError as error:
                raise ValueError(f"it should be {error.wanted}") from error
        return parameters

    @field_validator("budget", mode="before")
    @classmethod
    def _budgets(cls, budget: Any) -> Any:
        listed = [] if budget is None else budget if isinstance(budget, list) else [budget]
        for one in listed:
            try:
                Budget.parse(one)
            except HoldfastError as error:
                raise ValueError(f"{error.got}: it should be {error.wanted}") from error
        return [str(one) for one in listed]

    @model_validator(mode="before")
    @classmethod
    def _held_by_something(cls, values: Any) -> Any:
        """A budget with no way of holding on distils, which takes no old data and needs nothing measured before."""
        if not isinstance(values, Mapping) or not values.get("budget"):
            return values
        named = values.get("anchor") or values.get("curvature") or "distill" in values
        return values if named else {**values, "distill": 1.0}

    @property
    def budgets(self) -> list[Budget]:
        """What may be forgotten."""
        return [Budget.parse(one) for one in self.budget]

    @property
    def anchors(self) -> int:
        """How many anchors the run holds on by."""
        return len(self.anchor) + (self.curvature is not None)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if not self.distill and self.changed("distill_from"):
            raise ValueError(f"distill_from={self.distill_from} is of distillation: pass --distill WEIGHT")
        if self.distill > 0 and self.source is None and self.distill_from == "source":
            if self.budget:
                raise ValueError(
                    f"budget={', '.join(self.budget)} takes something to hold on by: --anchor DIR, or --source DATA "
                    "(or self), on which it then distils"
                )
            raise ValueError("distillation needs --source DATA, or --source self for text sampled from the model")
        if self.curvature is None and (key := next(filter(self.changed, MEASURING), None)):
            raise ValueError(
                f"{key}={getattr(self, key)} says how a curvature is measured, and --curvature names none"
            )
        if not self.anchors and (key := next(filter(self.changed, ("form", "prior", "forecast")), None)):
            asked = f"{key}={getattr(self, key)}"
            raise ValueError(f"{asked} is of the penalty on an anchor's shifts, and no anchor is named: pass --anchor")
        if self.together is not None and not (self.anchors and self.distill):
            raise ValueError(f"together={self.together} weighs an anchor and distillation alike: ask for both")
        if self.prior and self.changed("form"):
            raise ValueError(f"prior={self.prior} is a part of the quadratic form, and form is {self.form!r}")
        if self.draws > 1 and self.fisher != "sampled":
            raise ValueError(f"draws={self.draws} draws labels from the model, and fisher is {self.fisher!r}")
        if self.budget:
            self._check_budget()
        elif key := next(filter(self.changed, ("steering", "looks")), None):
            raise ValueError(f"{key}={getattr(self, key)} is of a budget, and none is named: pass --budget")
        if self.anchor_weights is not None and len(self.anchor_weights) != self.anchors:
            raise ValueError(
                f"{len(self.anchor_weights)} anchor_weights for {self.anchors} anchors: --anchor-weight once for each"
            )
        return self

    def _check_budget(self) -> None:
        both = bool(self.anchors and self.distill)
        if not both and (self.changed("strength") or (self.distill and self.distill != 1)):
            given = f"strength={self.strength:g}" if self.changed("strength") else f"distill={self.distill:g}"
            raise ValueError(
                f"budget={', '.join(self.budget)} sets the strength, and {given} sets it too: leave one out"
            )
        if self.changed("together"):
            raise ValueError(
                f"budget={', '.join(self.budget)} sets what together={self.together} would: leave one out"
            )
        if len(self.budget) > 1 and (len(self.budget) != self.anchors or self.distill):
            raise ValueError(
                f"{len(self.budget)} budgets for {self.anchors} anchors: one for all, or for each and no distillation"
            )
        if self.source is None and any(one.of in ("loss", "accuracy") for one in self.budgets):
            raise ValueError(f"budget={', '.join(self.budget)} takes source data to measure it on: pass --source")

    @field_validator("anchor_weights")
    @classmethod
    def _positive(cls, weights: list[float] | None) -> list[float] | None:
        if any(weight < 0 for weight in weights or ()):
            raise ValueError("numbers of at least 0")
        return weights

    def changed(self, key: str) -> bool:
        """Whether a key is not at its default."""
        return getattr(self, key) != type(self).model_fields[key].default
