"""What `holdfast fit` was asked for, validated before anything heavy starts."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.budgets.budget import Budget
from holdfast.errors import HoldfastError
from holdfast.recipe import SAMPLE_LENGTH, DataSettings, Settings


class FitRecipe(Settings):
    """One `holdfast fit` run."""

    model: str | None = Field(None, description="the base; None: what the adapter, or the anchor, names")
    adapter: Path
    anchor: Path
    budget: float | str
    how: str = "layers"
    worth: Literal["length", "target"] = Field("length", description="what a layer is worth: |D|^2, or the target's")
    source: DataSettings | None = None
    target: DataSettings | None = None
    samples: int = Field(256, ge=4, description="sequences sampled from the model for --source self")
    sample_length: int = Field(SAMPLE_LENGTH, ge=8, description="tokens per sampled sequence")
    length: int = Field(512, ge=2, description="tokens per sequence")
    held_out: float = Field(0.5, gt=0, lt=1, description="share of each data set that steers nothing")
    max_items: int = Field(50_000, ge=1, description="tokens read of each part of each data set, at most")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    @field_validator("budget")
    @classmethod
    def _budget(cls, budget: float | str) -> float | str:
        try:
            Budget.parse(budget)
        except HoldfastError as error:
            wanted = f"; wanted: {error.wanted}" if error.wanted else ""
            raise ValueError(f"{error.got}{wanted}") from error
        return budget

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.worth == "target" and self.target is None:
            raise ValueError("worth=target asks the target data what a layer is worth, and none are named")
        return self
