"""The recipe of an anchor: everything `holdfast anchor` was asked for, validated before anything heavy starts."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.memory import bytes_of
from holdfast.recipe import SAMPLE_LENGTH, DataSettings, Settings, layer_names

ITEMS = 200_000  # scored tokens that are read where nothing else says how many


class AnchorRecipe(Settings):
    """One `holdfast anchor` run."""

    model: str
    source: DataSettings | None = None
    curvature: str = "kronecker"
    targets: str | list[str] = "all-linear"
    fisher: Literal["sampled", "data", "exact"] = "sampled"
    draws: int = Field(1, ge=1, description="labels drawn from the model for each item")
    per: Literal["token", "sequence"] | None = Field(None, description="what is squared; as suits the curvature")
    keep: int = Field(256, ge=1, description="examples that curvatures of stored samples keep")
    max_items: int | None = Field(None, ge=1, description="stop after so many scored tokens; see `items`")
    until: float | None = Field(None, gt=0, lt=1, description="stop when the curvature is known to this share")
    fraction: float = Field(1.0, gt=0, le=1, description="share of the positions that enter the sums")
    products: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the sums' products")
    memory: str | None = Field(None, description="bytes for the finished curvature, 4GiB say; wide sides are cut down")
    factors: str | None = Field(None, description="how wide sides are kept: full, blocks:N, low-rank:K, diagonal")
    offload: Literal["cpu", "disk"] | None = Field(None, description="where running sums are kept")
    shard: bool = Field(False, description="under torchrun, each layer's sums on one rank")
    storage: Literal["float32", "bfloat16"] = Field("float32", description="of the files")
    samples: int = Field(256, ge=1, description="sequences sampled from the model for --source self")
    sample_length: int = Field(SAMPLE_LENGTH, ge=8, description="tokens per sampled sequence")
    length: int = Field(512, ge=2, description="tokens per sequence")
    batch_size: int = Field(8, ge=1, description="sequences per batch")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, targets: Any) -> Any:
        return layer_names(targets)

    @field_validator("memory", mode="before")
    @classmethod
    def _amount(cls, memory: Any) -> Any:
        if memory is None:
            return None
        bytes_of(memory)
        return str(memory)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.draws > 1 and self.fisher != "sampled":
            raise ValueError(f"draws={self.draws} draws labels from the model, and fisher is {self.fisher!r}")
        return self

    @property
    def items(self) -> int | None:
        """Scored tokens after which reading stops; None reads all of the source until the curvature is stable."""
        return ITEMS if self.max_items is None and self.until is None else self.max_items
